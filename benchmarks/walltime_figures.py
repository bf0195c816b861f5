"""Figures of what exchanges take on a ground: by dispatcher, credited to causes, and what they mean for a step.

Drawn from the records of `benchmarks.all_to_all`, whose methods are named "router/placement/dispatcher".
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.panels import Figure, Key, Line, Panel, Scale, line_panel
from benchmarks.point_panels import Dot, Mark, Part, Stack, dot_panel, spread_in_row, stack_panel
from benchmarks.record import Record
from benchmarks.router_figures import ACCOUNTING_KEYS, ACCOUNTINGS
from benchmarks.svg import method_colour
from benchmarks.verdict import Interval, over_seeds

RATIO, SHARE = "exchange_over_baseline", "all_to_all_share_modelled"
CAUSES = {
    "deduplication": Part("--method-0"),
    "placement": Part("--method-2", "////"),
    "constraint": Part("--method-1", "||||"),
    "hierarchy": Part("--method-3", "xxxx"),
}
CAUSE_KEYS = (
    Key("one copy a device (plain)", "--method-0", marker="■"),
    Key("the plain router's own placement (striped)", "--method-2", marker="■"),
    Key("the router (upright stripes)", "--method-1", marker="■"),
    Key("one copy a node (crossed)", "--method-3", marker="■"),
)
CLAIMED = (20.0, 30.0)
# % of the step between the intervals of two lines
STAGGER = 2.5

# method -> metric -> interval over seeds, of one setting on one ground
Measured = dict[str, dict[str, Interval]]


def walltime_figures(records: Sequence[Record]) -> list[Figure]:
    """Every figure that records of exchanges allow; none where there are no such records."""
    grounds = measured(records)
    if not grounds:
        return []
    several = len({record.topology for record in records}) > 1
    ratios = scaling_figure(records) if several else ratio_figure(grounds)
    return [figure for figure in (ratios, cause_figure(grounds), step_figure(grounds)) if figure.panels]


def measured(records: Iterable[Record]) -> dict[str, Measured]:
    """ "setting on topology, ground" -> method -> metric -> its interval over seeds."""
    groups: dict[str, dict[str, dict[str, list[Record]]]] = {}
    for record in records:
        if record.metric in (RATIO, SHARE) or record.metric.startswith("seconds_saving/"):
            of_method = groups.setdefault(f"{record.where}, {record.ground}", {}).setdefault(record.method, {})
            of_method.setdefault(record.metric, []).append(record)
    return {
        where: {
            method: {metric: over_seeds(rows) for metric, rows in by_metric.items()}
            for method, by_metric in by_method.items()
        }
        for where, by_method in groups.items()
    }


def ratio_figure(grounds: dict[str, Measured]) -> Figure:
    """Seconds of each router, placement and dispatcher over the baseline's."""
    panels = []
    for where, methods in grounds.items():
        named = [method.rsplit("/", 1) for method, found in methods.items() if RATIO in found]
        rows = list(dict.fromkeys(router for router, _ in named))
        dots = [
            Dot(rows.index(router) + shift, one.mean, one.high - one.mean, mark)
            for router, dispatcher in named
            for mark, shift in [ACCOUNTINGS[dispatcher]]
            for one in [methods[f"{router}/{dispatcher}"][RATIO]]
        ]
        if dots:
            svg = dot_panel(rows, dots, "seconds over the baseline's", zero=1.0, row_height=0.3)
            panels.append(Panel(where, svg))
    caption = (
        "Dispatch and combine, over the plain router's with contiguous experts and one copy an expert: MegaBlocks' "
        "scheme. Left of the line: faster. Medians over rounds, means over seeds with 95 % intervals."
    )
    return Figure("exchange_ratio", "What an exchange takes", caption, ACCOUNTING_KEYS, tuple(panels))


def scaling_figure(records: Iterable[Record]) -> Figure:
    """Seconds over the baseline's by topology, fewest devices first, a panel a setting and ground."""
    rows = [record for record in records if record.metric == RATIO]
    names = list(dict.fromkeys(row.method for row in rows))
    marks = {name: Mark.numbered(i, method_colour(i)) for i, name in enumerate(names)}
    panels = []
    for setting, ground in sorted({(row.setting, row.ground) for row in rows}):
        here = [row for row in rows if (row.setting, row.ground) == (setting, ground)]
        topologies = sorted({row.topology for row in here}, key=_num_devices)
        dots = []
        for (place, topology), (shift, name) in itertools.product(
            enumerate(topologies), zip(spread_in_row(len(names)), names, strict=True)
        ):
            one = over_seeds(row for row in here if (row.topology, row.method) == (topology, name))
            if one.count:
                dots.append(Dot(place + shift, one.mean, one.high - one.mean, marks[name]))
        labels = [f"{topology} devices" for topology in topologies]
        svg = dot_panel(labels, dots, "seconds over the baseline's", zero=1.0, row_height=0.16 + 0.1 * len(names))
        panels.append(Panel(f"{setting}, {ground}", svg))
    caption = (
        "Nodes x devices a node. Dispatch and combine, over the plain router's with contiguous experts and one copy an "
        "expert on as many devices: MegaBlocks' scheme. Left of the line: faster. Means over seeds with 95 % intervals."
    )
    keys = tuple(mark.key(name) for name, mark in marks.items())
    return Figure("exchange_scaling", "What an exchange takes on more devices", caption, keys, tuple(panels))


def cause_figure(grounds: dict[str, Measured]) -> Figure:
    """Share of the baseline's seconds that each cause saves."""
    panels = []
    for where, methods in grounds.items():
        stacks = [_stack(method, found) for method, found in methods.items() if "seconds_saving/all" in found]
        if stacks:
            parts = np.array([stack.parts for stack in stacks])
            ends = [np.where(side, parts, 0).sum(1) for side in (parts < 0, parts > 0)]
            limits = float(ends[0].min(initial=0.0)), float(ends[1].max(initial=1.0))
            svg = stack_panel(stacks, list(CAUSES.values()), "% of the baseline's seconds saved", limits)
            panels.append(Panel(where, svg))
    caption = (
        "Each cause on top of the ones before. Left of 0: it takes longer. Behind a bar the sum of its parts with its "
        "95 % interval over seeds."
    )
    return Figure("seconds_credit", "Which cause saves how many seconds", caption, CAUSE_KEYS, tuple(panels))


def step_figure(grounds: dict[str, Measured]) -> Figure:
    """What a faster exchange saves of a step, over the share of the step that the baseline's exchange is."""
    share = np.linspace(0, 100, 2)
    chosen = {where: fastest(methods) for where, methods in grounds.items()}
    labels = list(dict.fromkeys(name for methods in chosen.values() for name in methods))
    keys = [Key(label, method_colour(rank)) for rank, label in enumerate(labels)]
    panels = []
    for where, methods in chosen.items():
        here = [key for key in keys if key.label in methods]
        lines = [Line(key.label, share, share * (1 - methods[key.label].mean), key.colour) for key in here]
        lines += [_interval_at(100.0 - STAGGER * place, key, methods[key.label]) for place, key in enumerate(here)]
        goals = [Line("claimed", share, np.full(2, goal), "ink", dash="--", width=1.0) for goal in CLAIMED]
        shares = [found[SHARE].mean for found in grounds[where].values() if SHARE in found][:1]
        measured_share = [
            Line("here", np.array([100 * one]), np.full(1, np.nan), "ink", dash=":", width=1.1) for one in shares
        ]
        x = Scale("% of the baseline's step that is its exchange")
        panels.append(Panel(where, line_panel([*lines, *goals], x, Scale("% of the step saved"), measured_share)))
    caption = (
        "Time saved = share x (1 - ratio): each router and placement with its fastest dispatcher. Upright: 95 % "
        "intervals over seeds, side by side near 100 %. Dashed: the claimed 20 and 30 %. Dotted: the baseline's share "
        "here, computed from the measured exchange and the busiest rank's processor time of the experts."
    )
    title = "What that saves of a step depends on the exchange's share of it"
    return Figure("step_saving", title, caption, (*keys, Key("claimed", "ink", "--")), tuple(panels))


def fastest(methods: Measured) -> dict[str, Interval]:
    """Router/placement -> ratio to the baseline of its fastest dispatcher, the fastest first."""
    best: dict[str, Interval] = {}
    for method, found in sorted(methods.items(), key=lambda item: item[1][RATIO].mean if RATIO in item[1] else np.inf):
        if RATIO in found:
            best.setdefault(method.rsplit("/", 1)[0], found[RATIO])
    return best


def _interval_at(share: float, key: Key, ratio: Interval) -> Line:
    """What is saved at one share, as a point with its interval."""
    half = np.array([share * (ratio.high - ratio.mean)])
    return Line(key.label, np.array([share]), np.array([share * (1 - ratio.mean)]), key.colour, half)


def _num_devices(topology: str) -> tuple[int, str]:
    """Sort key of "4x2": devices first."""
    nodes, devices_per_node = topology.split("x")
    return int(nodes) * int(devices_per_node), topology


def _stack(method: str, found: dict[str, Interval]) -> Stack:
    whole = found["seconds_saving/all"]
    saved, half = 100 * whole.mean, 100 * (whole.high - whole.mean)
    text = f"{saved:.0f} ± {half:.1f} %" if np.isfinite(half) else f"{saved:.0f} %"
    return Stack(method, tuple(100 * found[f"seconds_saving/{cause}"].mean for cause in CAUSES), text)
