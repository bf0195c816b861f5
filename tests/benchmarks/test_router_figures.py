"""Figures of what routers send: points, fronts and bars, from records made up here."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import draw_figures
from benchmarks.panels import Figure
from benchmarks.record import Record
from benchmarks.router_figures import by_placement, dominated, front_of, measured, router_figures

# copies with contiguous experts, nats above plain, busiest device over mean
ROUTERS = {
    "topk": (2.0, 0.0, 1.05),
    "c2r_t3": (1.6, 0.06, 1.5),
    "cost_0.2": (0.8, 0.01, 1.08),
    "uneven": (0.7, 0.005, 1.2),
    "worse": (1.9, 0.03, 1.02),
    "relu": (2.4, -0.01, 1.09),
}
PLACEMENTS = {"contiguous": 1.0, "colocated_load": 0.8}
PLAIN_COPIES = 3.0


def record(setting: str, seed: int, method: str, metric: str, value: float, layer: str = "all") -> Record:
    return Record("e", "full", "trace", setting, seed, method, metric, float(value), "c1", layer=layer)


def router_records(setting: str = "nano32", seeds: int = 3, nodes: int = 2) -> Iterator[Record]:
    """Rows of every router on every placement; the last layer's own figures would spoil means."""
    for seed in range(seeds):
        for router, (sent, above, balance) in ROUTERS.items():
            for placement, factor in PLACEMENTS.items():
                copies = sent * factor + 0.01 * seed
                placed = 2.0 * (1 - factor)
                rows = {
                    "held_out/all": 3.0 + above,
                    "held_out_over_plain": above,
                    "copies/per_device": copies,
                    "device_max_over_mean": balance,
                    "saving/deduplication": (PLAIN_COPIES - 2) / PLAIN_COPIES,
                    "saving/placement": placed / PLAIN_COPIES,
                    "saving/constraint": (2 - placed - copies) / PLAIN_COPIES,
                    "saving/all": (PLAIN_COPIES - copies) / PLAIN_COPIES,
                }
                for accounting, more in (("per_expert", 1.3), ("per_device", 1.0), ("per_node", 0.7)):
                    rows |= {f"bytes/{accounting}": 100 * copies * more}
                    rows |= {f"busiest_device_bytes/{accounting}": 100 * copies * more * balance}
                    rows |= {f"inter_node_bytes/{accounting}": 50 * copies * more} if nodes > 1 else {}
                for metric, value in rows.items():
                    yield record(setting, seed, f"{router}/{placement}", metric, value)
                yield record(setting, seed, f"{router}/{placement}", "device_max_over_mean", 99.0, layer="3")


def figures(records: list[Record]) -> dict[str, Figure]:
    return {figure.name: figure for figure in router_figures(records)}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def slow_front(points: list[tuple[float, float]]) -> set[tuple[float, float]]:
    kept = set()
    for x, y in points:
        if not any((a <= x and b <= y) and (a < x or b < y) for a, b in points):
            kept.add((x, y))
    return kept


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), max_size=12))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]]):
    points = [(float(x), float(y)) for x, y in pairs]
    front = front_of(np.array(points).reshape(-1, 2))
    assert {(float(x), float(y)) for x, y in front} == slow_front(points)
    assert (np.diff(front[:, 0]) > 0).all()
    assert (np.diff(front[:, 1]) < 0).all()


def test_equal_points_do_not_beat_each_other():
    assert dominated(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [False, False, True]


def test_pareto_has_a_point_a_router_in_a_panel_a_placement():
    pareto = figures([*router_records(), *router_records("nano16")])["pareto"]
    assert "lower left is better" in pareto.title
    titles = [f"{s}, placement {p}" for s in ("nano16", "nano32") for p in sorted(PLACEMENTS)]
    assert [panel.title for panel in pareto.panels] == titles
    for panel in pareto.panels:
        assert sorted(set(texts(panel.svg)) & set(ROUTERS)) == sorted(ROUTERS)


def test_pareto_marks_say_how_even_devices_are():
    panel = figures(list(router_records()))["pareto"].panels[0]
    filled = re.findall(r'<use [^>]*style="fill: var\(--method-0\)', panel.svg)
    # topk, cost_0.2, worse and relu are even, uneven is a square, c2r_t3 a triangle
    assert len(filled) == 4
    opened = re.findall(r'<use [^>]*style="fill-opacity: 0; stroke: var\(--method-(\d)\)', panel.svg)
    assert sorted(opened) == ["1", "3"]


def test_pareto_front_leaves_out_uneven_and_beaten_routers():
    """The dashed line runs over relu, topk and cost_0.2 on the better placement, and is the same in every panel."""
    lines = []
    for panel in figures(list(router_records()))["pareto"].panels:
        dashed = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke-dasharray[^"]*stroke: currentColor', panel.svg)
        assert len(dashed) == 1
        lines.append(re.findall(r"[ML] ([\d.]+) ([\d.]+)", dashed[0]))
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3


def test_routers_that_see_later_tokens_have_no_quality_to_draw():
    later = [
        record("nano32", 0, "later/contiguous", metric, 1.0) for metric in ("copies/per_device", "device_max_over_mean")
    ]
    pareto = figures([*router_records(), *later])["pareto"]
    assert not any("later" in texts(panel.svg) for panel in pareto.panels)


def test_credit_is_sorted_by_the_sum_and_tells_it():
    credit = figures(list(router_records()))["credit"]
    svg = credit.panels[1].svg
    assert credit.panels[1].title == "nano32, placement contiguous"
    named = [text for text in texts(svg) if text in ROUTERS]
    assert named == ["uneven", "cost_0.2", "c2r_t3", "worse", "topk", "relu"]
    sums = [text for text in texts(svg) if text.endswith(" %")]
    # 1 - (2.4 + .01) / 3, and 4.3 x .01 / sqrt(3) / 3 of the seeds
    assert sums[-1] == "20 ± 0.8 %"
    assert sums[0] == "76 ± 0.8 %"


def test_credit_draws_what_a_router_sends_more_left_of_zero():
    only = [r for r in router_records(seeds=1) if r.method == "relu/contiguous"]
    svg = figures(only)["credit"].panels[0].svg
    zero = min(float(x) for x in re.findall(r'<path d="M ([\d.]+)[^"]*"[^>]*style="fill: var\(--method-0\)', svg))
    hatched = re.findall(r'<path d="([^"]*)"[^>]*style="fill: url', svg)
    ends = [[float(x) for x in re.findall(r"[ML] (-?[\d.]+)", path)] for path in hatched]
    assert min(min(one) for one in ends) < zero - 5
    assert "20 %" in texts(svg)


def test_volume_has_six_marks_a_router_and_panels_between_nodes():
    volume = figures(list(router_records()))["volume"]
    assert [panel.title for panel in volume.panels] == [
        "nano32, placement colocated_load",
        "nano32, placement contiguous",
        "nano32, placement colocated_load, between nodes",
        "nano32, placement contiguous, between nodes",
    ]
    marks = re.findall(r"<use [^>]*stroke: var\(--method-(\d)\)", volume.panels[0].svg)
    assert sorted(marks) == sorted(2 * len(ROUTERS) * ["0", "1", "2"])
    assert [text for text in texts(volume.panels[0].svg) if text in ROUTERS][:2] == ["uneven", "cost_0.2"]
    assert len(figures(list(router_records(nodes=1)))["volume"].panels) == 2


def test_one_seed_and_one_router_are_drawn_too():
    only = [r for r in router_records(seeds=1) if r.method == "cost_0.2/contiguous"]
    found = figures(only)
    assert {name: len(figure.panels) for name, figure in found.items()} == {"pareto": 1, "credit": 1, "volume": 2}


def test_the_report_draws_these_instead_of_device_loads():
    drawn = [figure.name for figure in draw_figures(list(router_records(seeds=1)), [], [])]
    assert drawn == ["pareto", "credit", "volume"]
    placed = [record("nano32", 0, method, "device_max_over_mean", 1.2) for method in ("lpt/sw_avg", "contiguous")]
    assert measured(placed) == {}
    assert [figure.name for figure in draw_figures(placed, [], [])] == ["device_load"]


def test_methods_are_grouped_by_what_follows_the_last_slash():
    assert by_placement(["b/x", "a/y", "a/x"]) == {"x": ["a/x", "b/x"], "y": ["a/y"]}


def test_colours_are_the_pages():
    drawings = "".join(panel.svg for figure in figures(list(router_records())).values() for panel in figure.panels)
    assert not re.findall(r"(?:fill|stroke): #", drawings)
