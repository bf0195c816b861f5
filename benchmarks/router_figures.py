"""Figures of what routers send: against quality, credited to causes, and in bytes.

Drawn from the records of `benchmarks.route_volume`, whose methods are named "router/placement".
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.panels import Figure, Key, Panel
from benchmarks.point_panels import Dot, Mark, Part, Point, Stack, dot_panel, scatter_panel, stack_panel
from benchmarks.record import Record
from benchmarks.verdict import Interval, over_seeds

# a metric that only these experiments have
SENT = "copies/per_device"
ABOVE_PLAIN, BALANCE, ALL_SAVED = "held_out_over_plain", "device_max_over_mean", "saving/all"

# method -> metric -> interval over seeds, of one setting
Measured = dict[str, dict[str, Interval]]


class BalanceClass(NamedTuple):
    """Routers whose busiest device has at most so many times the mean load."""

    most: float
    mark: Mark
    key: Key


EVEN = 1.1
BALANCE_CLASSES = (
    BalanceClass(
        EVEN, Mark("o", "--method-0"), Key("busiest device at most 1.1 times the mean", "--method-0", marker="●")
    ),
    BalanceClass(1.3, Mark("s", "--method-1", is_filled=False), Key("at most 1.3", "--method-1", marker="□")),
    BalanceClass(np.inf, Mark("^", "--method-3", is_filled=False), Key("above", "--method-3", marker="△")),
)
CAUSES = {
    "deduplication": Part("--method-0"),
    "placement": Part("--method-2", "////"),
    "constraint": Part("--method-1", "||||"),
}
CAUSE_KEYS = (
    Key("one copy a device (plain)", "--method-0", marker="■"),
    Key("the plain router's own placement (striped)", "--method-2", marker="■"),
    Key("the router (upright stripes)", "--method-1", marker="■"),
)
# how each is drawn, and how far from the middle of its row
ACCOUNTINGS = {
    "per_expert": (Mark("s", "--method-1"), -0.25),
    "per_device": (Mark("o", "--method-0"), 0.0),
    "per_node": (Mark("D", "--method-2"), 0.25),
}
ACCOUNTING_KEYS = (
    Key("one copy an expert", "--method-1", marker="■"),
    Key("one a device", "--method-0", marker="●"),
    Key("one a node", "--method-2", marker="◆"),
)
BYTES = {"": ("bytes", "busiest_device_bytes"), ", between nodes": ("inter_node_bytes", "busiest_node_bytes")}
COPIES_AXIS, SAVED_AXIS = "remote copies a token, one a device", "% of the plain router's copies saved"
BYTES_AXIS = "bytes a token and layer"


def router_figures(records: Sequence[Record]) -> list[Figure]:
    """Every figure that records of routed volume allow; none where there are no such records."""
    settings = measured(records)
    figures = [pareto_figure(settings), credit_figure(settings), volume_figure(settings)]
    return [figure for figure in figures if figure is not None]


def measured(records: Iterable[Record]) -> dict[str, Measured]:
    """Setting and topology -> method -> metric -> its interval over seeds, of methods whose volume was counted."""
    groups: dict[str, dict[str, dict[str, list[Record]]]] = {}
    for record in records:
        if record.layer == "all":
            of_method = groups.setdefault(record.where, {}).setdefault(record.method, {})
            of_method.setdefault(record.metric, []).append(record)
    found = {
        setting: {
            method: {metric: over_seeds(rows) for metric, rows in by_metric.items()}
            for method, by_metric in sorted(by_method.items())
            if SENT in by_metric
        }
        for setting, by_method in sorted(groups.items())
    }
    return {setting: by_method for setting, by_method in found.items() if by_method}


def pareto_figure(settings: dict[str, Measured]) -> Figure | None:
    """Loss above the plain router against copies sent, a panel a setting and placement, a point a router."""
    panels = []
    for setting, methods in settings.items():
        points = {name: _point(name, found) for name, found in methods.items() if {ABOVE_PLAIN, BALANCE} <= set(found)}
        even = [one for name, one in points.items() if methods[name][BALANCE].mean <= EVEN]
        front = front_of(np.array([[point.x, point.y] for point in even]).reshape(-1, 2))
        for placement, names in by_placement(points).items():
            here = [points[name] for name in names]
            svg = scatter_panel(here, list(points.values()), front, COPIES_AXIS, "nats above the plain router")
            panels.append(Panel(f"{setting}, placement {placement}", svg))
    caption = (
        f"Dashed: routers with at most {EVEN} that no other of them beats in both, over all placements of a "
        "setting. Means over seeds with 95 % intervals, cut where they leave a panel; nats a token of held-out text."
    )
    title = "What a token sends, and what that costs in quality: lower left is better"
    keys = tuple(one.key for one in BALANCE_CLASSES)
    return Figure("pareto", title, caption, keys, tuple(panels)) if panels else None


def credit_figure(settings: dict[str, Measured]) -> Figure | None:
    """Share of the plain router's copies that each cause saves, a bar a router, largest saving on top."""
    panels = []
    for setting, methods in settings.items():
        stacks = {name: _stack(name, found) for name, found in methods.items() if ALL_SAVED in found}
        limits = _ends([stack.parts for stack in stacks.values()])
        for placement, names in by_placement(stacks).items():
            ranked = sorted(names, key=lambda name: -methods[name][ALL_SAVED].mean)
            svg = stack_panel([stacks[name] for name in ranked], list(CAUSES.values()), SAVED_AXIS, limits)
            panels.append(Panel(f"{setting}, placement {placement}", svg))
    caption = (
        "Against the plain router with experts in their given order and one copy an expert, each cause on top of the "
        "ones before. Left of 0: it sends more. Behind a bar the sum of its parts with its 95 % interval over seeds."
    )
    title = "Which cause saves how much of what the plain router sends"
    return Figure("credit", title, caption, CAUSE_KEYS, tuple(panels)) if panels else None


def volume_figure(settings: dict[str, Measured]) -> Figure | None:
    """Bytes a token in each accounting, mean and busiest device's; between nodes in panels of their own."""
    panels = []
    for setting, methods in settings.items():
        for title, metrics in BYTES.items():
            dots = {name: _byte_dots(found, metrics) for name, found in methods.items()}
            dots = {name: mine for name, mine in dots.items() if mine}
            limits = (0.0, 1.05 * max((dot.value for mine in dots.values() for dot in mine), default=0.0))
            for placement, names in by_placement(dots).items():
                ranked = sorted(names, key=lambda name: methods[name][SENT].mean)
                rows = [replace(dot, row=i + dot.row) for i, name in enumerate(ranked) for dot in dots[name]]
                svg = dot_panel(list(map(router_of, ranked)), rows, BYTES_AXIS, limits=limits, row_height=0.3)
                panels.append(Panel(f"{setting}, placement {placement}{title}", svg))
    caption = (
        "Filled: mean; open: what the busiest device (between nodes: node) sends or receives for each token that it "
        "holds. Means over seeds with 95 % intervals, fewest copies on top."
    )
    title = "Bytes that dispatch and combine move"
    return Figure("volume", title, caption, ACCOUNTING_KEYS, tuple(panels)) if panels else None


def front_of(points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """The points that no other is below in one figure and not above in the other, from left to right."""
    return np.unique(points[~dominated(points)], axis=0)


def dominated(points: Float[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
    """Which points another one is at most equal to in both figures and below in one."""
    no_worse = (points[None] <= points[:, None]).all(-1)
    better = (points[None] < points[:, None]).any(-1)
    return np.any(no_worse & better, axis=1)


def by_placement(methods: Iterable[str]) -> dict[str, list[str]]:
    """Placement -> the methods on it, both in order of their names."""
    groups: dict[str, list[str]] = {}
    for method in sorted(methods):
        groups.setdefault(method.rpartition("/")[2], []).append(method)
    return dict(sorted(groups.items()))


def router_of(method: str) -> str:
    """What stands before the placement's name."""
    return method.rpartition("/")[0]


def _half_width(interval: Interval) -> float:
    """Half of an interval's width, NaN where there is none."""
    return interval.high - interval.mean


def _point(method: str, found: dict[str, Interval]) -> Point:
    x, y = found[SENT], found[ABOVE_PLAIN]
    mark = next(one.mark for one in BALANCE_CLASSES if found[BALANCE].mean <= one.most)
    return Point(router_of(method), x.mean, y.mean, _half_width(x), _half_width(y), mark)


def _stack(method: str, found: dict[str, Interval]) -> Stack:
    saved, half = 100 * found[ALL_SAVED].mean, 100 * _half_width(found[ALL_SAVED])
    text = f"{saved:.0f} ± {half:.1f} %" if np.isfinite(half) else f"{saved:.0f} %"
    return Stack(router_of(method), tuple(100 * found[f"saving/{cause}"].mean for cause in CAUSES), text)


def _ends(bars: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """Where the longest bars end to the left and right of 0."""
    parts = np.array(bars).reshape(-1, len(CAUSES))
    left, right = (np.where(side, parts, 0).sum(1) for side in (parts < 0, parts > 0))
    return float(left.min(initial=0.0)), float(right.max(initial=1.0))


def _byte_dots(found: dict[str, Interval], metrics: tuple[str, str]) -> list[Dot]:
    """A method's dots, in rows about 0: a row an accounting, the mean filled and the busiest one's open."""
    return [
        Dot(shift, one.mean, _half_width(one), replace(mark, is_filled=is_filled))
        for metric, is_filled in zip(metrics, (True, False), strict=True)
        for accounting, (mark, shift) in ACCOUNTINGS.items()
        if (one := found.get(f"{metric}/{accounting}"))
    ]
