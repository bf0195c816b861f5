"""Figures of what a router costs in quality against the plain one, from the records of `benchmarks.compare_quality`."""

from collections.abc import Sequence

import numpy as np

from benchmarks.panels import Figure, Panel
from benchmarks.point_panels import Dot, Mark, dot_panel, spread_in_row, spread_limits
from benchmarks.record import Record
from benchmarks.record_figures import natural
from benchmarks.svg import method_colour, ordered_colour
from benchmarks.verdict import over_seeds

OVER_PLAIN = "/over_plain"
# metric -> what its difference to the plain arm's is called
GAPS = {
    f"held_out/all{OVER_PLAIN}": "held-out nats a token above plain",
    f"accuracy_mean{OVER_PLAIN}": "mean accuracy above plain",
}
ACCURACY = "accuracy/"
PLAIN = "plain"
CHANCE = Mark("|", "ink", size=13.0)


def quality_figures(records: Sequence[Record]) -> list[Figure]:
    """Every figure that records of compared quality allow; none where there are no such records."""
    rows = [row for row in records if row.layer == "all" and row.horizon]
    figures = [gap_figure(rows), accuracy_figure(rows)]
    return [figure for figure in figures if figure is not None]


def gap_figure(records: Sequence[Record]) -> Figure | None:
    """Difference to the plain arm, a panel a setting and measure, a row a router, a dot a number of steps."""
    rows = [row for row in records if row.metric in GAPS]
    horizons = sorted({row.horizon for row in rows})
    marks = {h: Mark.numbered(i, ordered_colour(i, len(horizons))) for i, h in enumerate(horizons)}
    panels = []
    for where, metric in sorted({(row.where, row.metric) for row in rows}, key=_gap_order):
        here = [row for row in rows if (row.where, row.metric) == (where, metric)]
        panels.append(Panel(where, _gap_panel(here, marks, GAPS[metric])))
    keys = tuple(mark.key(f"after {h:,} steps") for h, mark in marks.items())
    caption = (
        "Loss: left of the line is better than plain; accuracy: right of it. Means over parents with 95 % intervals, "
        "cut where they leave a panel; a parent's continuations are averaged first."
    )
    title = "Quality against the plain router's after equal tokens"
    return Figure("quality_gap", title, caption, keys, tuple(panels)) if panels else None


def accuracy_figure(records: Sequence[Record]) -> Figure | None:
    """Accuracy of each router and the plain one by task, the chance level as a tick; a panel a setting and horizon."""
    rows = [row for row in records if row.metric.startswith(ACCURACY)]
    levels = [row for row in rows if not row.metric.endswith(OVER_PLAIN)]
    if len(levels) == len(rows):
        return None
    routers = sorted({row.method for row in levels}, key=natural)
    marks = {name: Mark.numbered(i, method_colour(i)) for i, name in enumerate([PLAIN, *routers])}
    panels = []
    for where, horizon in sorted({(row.where, row.horizon) for row in levels}):
        here = [row for row in rows if (row.where, row.horizon) == (where, horizon)]
        panels.append(Panel(f"{where}, {horizon:,} steps", _accuracy_panel(here, marks)))
    has_chance = any(np.isfinite(row.floor) for row in levels)
    return Figure(
        "accuracy",
        "Accuracy by task",
        f"{'Upright tick: chance. ' if has_chance else ''}Means over parents and continuations.",
        tuple(mark.key(name) for name, mark in marks.items()),
        tuple(panels),
    )


def _gap_order(one: tuple[str, str]) -> tuple[str, int]:
    return one[0], list(GAPS).index(one[1])


def _gap_panel(rows: Sequence[Record], marks: dict[int, Mark], label: str) -> str:
    methods = sorted({row.method for row in rows}, key=natural)
    dots = []
    for place, method in enumerate(methods):
        for shift, (horizon, mark) in zip(spread_in_row(len(marks)), marks.items(), strict=True):
            one = over_seeds(row for row in rows if (row.method, row.horizon) == (method, horizon))
            if one.count:
                dots.append(Dot(place + shift, one.mean, one.high - one.mean, mark))
    means, halves = np.array([[0.0, 0.0], *([dot.value, dot.half_interval] for dot in dots)]).T
    limits = spread_limits(means, halves, most_interval=1.0)
    return dot_panel(methods, dots, label, zero=0.0, limits=limits, row_height=0.16 + 0.11 * len(marks))


def _accuracy_panel(rows: Sequence[Record], marks: dict[str, Mark]) -> str:
    tasks = sorted({row.metric.removesuffix(OVER_PLAIN) for row in rows}, key=natural)
    dots = []
    for place, task in enumerate(tasks):
        levels = [row for row in rows if row.metric == task]
        found = {PLAIN: _plain(levels, [row for row in rows if row.metric == task + OVER_PLAIN])}
        found |= {row.method: over_seeds(r for r in levels if r.method == row.method).mean for row in levels}
        for shift, (name, mark) in zip(spread_in_row(len(marks)), marks.items(), strict=True):
            if np.isfinite(value := found.get(name, np.nan)):
                dots.append(Dot(place + shift, value, np.nan, mark))
        if np.isfinite(chance := over_seeds(levels, "floor").mean):
            dots.append(Dot(float(place), chance, np.nan, CHANCE))
    names = [task.removeprefix(ACCURACY) for task in tasks]
    return dot_panel(names, dots, "accuracy", row_height=0.16 + 0.06 * len(marks))


def _plain(levels: Sequence[Record], differences: Sequence[Record]) -> float:
    """The plain arm's accuracy: any router's less its difference."""
    return over_seeds(levels).mean - over_seeds(differences).mean
