"""Figures of quality against the plain router, from records made up here."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.figures import draw_figures
from benchmarks.panels import Figure
from benchmarks.quality_figures import accuracy_figure, gap_figure, quality_figures
from benchmarks.record import Record

GAPS = {"c2r_t3": 0.06, "c2r_t16": 0.004}
TASKS = {"cloze": 0.25, "order": 0.5}
PLAIN = 0.6


def quality_records(horizons: tuple[int, ...] = (250,), chance: bool = True) -> Iterator[Record]:
    for seed in range(3):
        for horizon in horizons:
            for method, gap in GAPS.items():
                drop = -gap + 0.001 * seed
                rows = {
                    "held_out/all/over_plain": (gap + 0.001 * seed, np.nan),
                    "accuracy_mean/over_plain": (drop, np.nan),
                }
                for task, level in TASKS.items():
                    rows[f"accuracy/{task}"] = (PLAIN + drop, level if chance else np.nan)
                    rows[f"accuracy/{task}/over_plain"] = (drop, np.nan)
                for metric, (value, floor) in rows.items():
                    columns = {"horizon": horizon, "floor": float(floor)}
                    yield Record("e", "full", "cpu", "nano32", seed, method, metric, float(value), "c1", **columns)


def gap(records: list[Record]) -> Figure:
    figure = gap_figure(records)
    assert figure is not None
    return figure


def accuracy(records: list[Record]) -> Figure:
    figure = accuracy_figure(records)
    assert figure is not None
    return figure


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def marks(svg: str, colour: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: {re.escape(colour)}; stroke', svg)
    return [(float(x), float(y)) for x, y in found]


def test_gap_has_a_panel_for_loss_and_for_accuracy_with_routers_in_natural_order():
    loss, mean = gap(list(quality_records())).panels
    assert [text for text in texts(loss.svg) if text in GAPS] == ["c2r_t3", "c2r_t16"]
    assert "held-out nats a token above plain" in texts(loss.svg)
    assert "mean accuracy above plain" in texts(mean.svg)


def test_gap_puts_numbers_of_steps_side_by_side():
    figure = gap(list(quality_records((1000, 250))))
    assert [key.label for key in figure.keys] == ["after 250 steps", "after 1,000 steps"]
    assert len({key.marker for key in figure.keys}) == 2
    assert len(figure.panels) == 2
    svg = figure.panels[0].svg
    short, long = (marks(svg, f"var({key.colour})") for key in figure.keys)
    # the same values twice: one above the other, the fewer steps on top
    assert [x for x, _ in short] == [x for x, _ in long]
    assert all(y < other for (_, y), (_, other) in zip(short, long, strict=True))


def test_accuracy_has_a_row_a_task_with_the_plain_router_among_the_others():
    figure = accuracy(list(quality_records()))
    assert [key.label for key in figure.keys] == ["plain", "c2r_t3", "c2r_t16"]
    (panel,) = figure.panels
    assert [text for text in texts(panel.svg) if text in TASKS] == ["cloze", "order"]
    plain, t3, t16 = (marks(panel.svg, f"var({key.colour})") for key in figure.keys)
    assert len(plain) == len(TASKS)
    # plain is the routers' accuracy less their differences: right of both, and alike for all tasks
    assert plain[0][0] == pytest.approx(plain[1][0], abs=0.02)
    assert t3[0][0] < t16[0][0] < plain[0][0]


def test_accuracy_marks_chance_where_it_is_known():
    known, unknown = (accuracy(list(quality_records(chance=one))) for one in (True, False))
    assert "chance" in known.caption
    assert "chance" not in unknown.caption
    low, high = marks(known.panels[0].svg, "currentColor")
    assert low[0] < high[0]
    assert not marks(unknown.panels[0].svg, "currentColor")


def test_accuracy_has_a_panel_a_number_of_steps():
    titles = [panel.title for panel in accuracy(list(quality_records((250, 1000)))).panels]
    assert titles == ["nano32, 250 steps", "nano32, 1,000 steps"]


def test_losses_alone_have_no_accuracies():
    losses = [row for row in quality_records() if row.metric.startswith("held_out")]
    assert [figure.name for figure in quality_figures(losses)] == ["quality_gap"]
    assert len(gap(losses).panels) == 1


def test_an_arms_own_records_compare_nothing():
    own = [row for row in quality_records() if not row.metric.endswith("/over_plain")]
    assert quality_figures(own) == []


def test_the_report_draws_both():
    names = [figure.name for figure in draw_figures(list(quality_records()), [], [])]
    assert names == ["quality_gap", "accuracy"]
