"""The figure of whole steps, from records made up here."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.figures import draw_figures
from benchmarks.live_job import LIVE_PARTS
from benchmarks.record import Record
from benchmarks.step_figures import PARTS, step_parts_figure
from models.callbacks.step_timer import PARTS as TIMED

# method -> whole step in seconds by seed
STEPS = {"topk/contiguous/per_expert": (1.0, 1.0, 1.0), "c2r_t3/colocated/per_device": (0.5, 0.6, 0.7)}


def records(ground: str = "emulated 1 Gbit/s") -> list[Record]:
    def row(seed: int, method: str, metric: str, value: float) -> Record:
        return Record("e", "full", ground, "nano32", seed, method, metric, value, "c", topology="2x1")

    found = []
    for method, steps in STEPS.items():
        for seed, seconds in enumerate(steps):
            found += [row(seed, method, "step_over_baseline", seconds), row(seed, method, "step_seconds", seconds)]
            found += [row(seed, method, f"step_seconds/{part}", seconds / len(TIMED)) for part in TIMED]
    return found


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_every_part_that_is_timed_is_drawn() -> None:
    assert tuple(PARTS) == LIVE_PARTS


def test_a_bar_says_what_its_step_is_of_the_baselines() -> None:
    figure = step_parts_figure(records())
    assert figure
    assert {"100 %", "60 ± 24.8 %"} <= set(texts(figure.panels[0].svg))
    assert [key.label.split()[0] for key in figure.keys] == list(TIMED)


def test_each_ground_has_a_panel() -> None:
    figure = step_parts_figure(records() + records("emulated 200 Mbit/s"))
    assert figure
    rates = ["1 Gbit/s", "200 Mbit/s"]
    assert [panel.title for panel in figure.panels] == [f"nano32 on 2x1 devices, emulated {rate}" for rate in rates]


def test_each_start_has_a_panel_and_moves_are_a_part() -> None:
    rows = [replace(row, state=state) for state in ("parent", "scratch") for row in records()]
    rows += [replace(row, metric="step_seconds/rebalance", value=0.1) for row in rows if row.metric == "step_seconds"]
    figure = step_parts_figure(rows)
    assert figure
    assert [panel.title.rsplit(", ", 1)[-1] for panel in figure.panels] == ["from parent", "from scratch"]
    assert [key.label.split()[0] for key in figure.keys] == list(LIVE_PARTS)


def test_parts_together_are_as_long_as_the_whole() -> None:
    rows = [row for row in records() if row.method.startswith("c2r")]
    figure = step_parts_figure(rows)
    assert figure
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="fill: (?:var|url)', figure.panels[0].svg)
    ends = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", bar)] for bar in bars]
    widths = [max(xs) - min(xs) for xs in ends if xs]
    assert len(widths) == len(TIMED)
    assert widths == pytest.approx([sum(widths) / len(TIMED)] * len(TIMED), abs=0.05)


def test_the_report_draws_it_where_there_are_steps() -> None:
    assert [figure.name for figure in draw_figures(records(), [], [])] == ["step_parts"]
    assert step_parts_figure([row for row in records() if row.metric == "step_seconds"]) is None
