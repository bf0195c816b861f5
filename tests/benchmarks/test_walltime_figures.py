"""Figures of exchanges, from records made up here."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.figures import draw_figures
from benchmarks.record import Record
from benchmarks.walltime_figures import fastest, measured, step_figure, walltime_figures

METHODS = {
    "topk/contiguous": {"per_expert": 1.0, "per_device": 0.9, "per_node": 0.95},
    "c2r_t3/colocated": {"per_expert": 1.1, "per_device": 0.5, "per_node": 0.4},
}
GROUNDS = ("emulated 200 Mbit/s", "emulated 1 Gbit/s")


def records(seeds=(0, 1, 2)):
    def row(ground, seed, method, metric, value):
        return Record("e", "full", ground, "nano32", seed, method, metric, value, "c")

    for ground in GROUNDS:
        for seed in seeds:
            for where, ratios in METHODS.items():
                for dispatcher, ratio in ratios.items():
                    method = f"{where}/{dispatcher}"
                    yield row(ground, seed, method, "exchange_over_baseline", ratio + 0.01 * seed)
                    yield row(ground, seed, method, "all_to_all_share_modelled", 0.6)
                parts = {"deduplication": 0.1, "placement": 0.2, "constraint": 0.05, "hierarchy": -0.05}
                for cause, saved in parts.items():
                    yield row(ground, seed, where, f"seconds_saving/{cause}", saved)
                yield row(ground, seed, where, "seconds_saving/all", sum(parts.values()))


def texts(svg):
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


@pytest.fixture(scope="module")
def figures():
    return {figure.name: figure for figure in walltime_figures(list(records()))}


def test_each_ground_has_a_panel_in_each_figure(figures):
    assert list(figures) == ["exchange_ratio", "seconds_credit", "step_saving"]
    for figure in figures.values():
        assert [panel.title for panel in figure.panels] == [f"nano32, {ground}" for ground in GROUNDS]


def test_rows_are_routers_and_the_saving_stands_at_its_bar(figures):
    assert set(METHODS) <= set(texts(figures["exchange_ratio"].panels[0].svg))
    assert "30 ± 0.0 %" in texts(figures["seconds_credit"].panels[0].svg)


def test_topologies_are_rows_of_one_panel_fewest_devices_first():
    rows = [replace(row, topology=topology) for row in records() for topology in ("4x2", "2x1", "16x1")]
    figures = walltime_figures(rows)
    assert [figure.name for figure in figures] == ["exchange_scaling", "seconds_credit", "step_saving"]
    assert [panel.title for panel in figures[0].panels] == [f"nano32, {ground}" for ground in sorted(GROUNDS)]
    labels = [text for text in texts(figures[0].panels[0].svg) if text.endswith("devices")]
    assert labels == ["2x1 devices", "4x2 devices", "16x1 devices"]
    assert f"nano32 on 16x1 devices, {GROUNDS[0]}" in {panel.title for panel in figures[1].panels}


def test_a_saving_at_all_exchange_has_its_interval():
    panel = step_figure(measured(list(records()))).panels[0]
    alone = step_figure(measured(list(records(seeds=(0,))))).panels[0]
    # the bars' ends are marks, which single lines have none of
    assert panel.svg.count("<use") > alone.svg.count("<use")


def test_a_router_counts_with_its_fastest_dispatcher_the_fastest_first():
    methods = measured(list(records(seeds=(0,))))[f"nano32, {GROUNDS[0]}"]
    found = [(name, one.mean) for name, one in fastest(methods).items()]
    assert found == [("c2r_t3/colocated", 0.4), ("topk/contiguous", 0.9)]


def test_the_legend_names_every_line(figures):
    labels = [key.label for key in figures["step_saving"].keys]
    assert labels == ["c2r_t3/colocated", "topk/contiguous", "claimed"]


def test_there_are_none_without_exchanges():
    other = [Record("e", "full", "cpu", "nano32", 0, "topk/contiguous", "copies/per_device", 1.0, "c")]
    assert walltime_figures(other) == []


def test_the_report_draws_them():
    names = [figure.name for figure in draw_figures(list(records()), [], [])]
    assert names == ["exchange_ratio", "seconds_credit", "step_saving"]
    assert all(re.fullmatch(r"\w+", name) for name in names)
