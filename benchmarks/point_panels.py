"""Panels of single figures: labelled points in a plane, points in rows, and bars made of parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks.labels import needs_line, place_labels
from benchmarks.panels import Key, panel_svg, tick_text
from benchmarks.svg import FAINT, INK, drawn_colour

LABEL_SIZE = 7.5
# of a letter, relative to the font's size; the page's font is not known here, so rather too much
LETTER_WIDTH, LETTER_HEIGHT = 0.6, 1.05
# y turns logarithmic away from 0 where the largest value is so many times the median
WIDE = 30.0
# share of the values' range that is free beyond the outermost, and that intervals may take there in a plane
MARGIN, MOST_INTERVAL = 0.09, 0.15
ROW_HEIGHT = 0.235
# of an axis, for the texts at the ends of bars
TEXT_ROOM = 0.42
# matplotlib's markers, and what stands for each in a legend
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "<": "◀", ">": "▶", "P": "✚"}


@dataclass(frozen=True)
class Mark:
    """How a point looks: a marker of matplotlib in a CSS variable's colour, filled or open; size in points."""

    marker: str
    colour: str
    is_filled: bool = True
    size: float = 4.6

    @classmethod
    def numbered(cls, index: int, colour: str) -> "Mark":
        """The marks of a series: neighbours differ in shape too, never in colour alone."""
        return cls(list(MARKERS)[index % len(MARKERS)], colour)

    def key(self, label: str) -> Key:
        """Its line in a legend."""
        return Key(label, self.colour, marker=MARKERS[self.marker])


@dataclass(frozen=True)
class Point:
    """A labelled point of a plane with its half intervals, NaN for none."""

    label: str
    x: float
    y: float
    x_half: float
    y_half: float
    mark: Mark


@dataclass(frozen=True)
class Dot:
    """A point in a row; rows are counted from 0 and may be fractions, to keep dots of a row apart."""

    row: float
    value: float
    half_interval: float
    mark: Mark


@dataclass(frozen=True)
class Stack:
    """A bar made of parts, and what is written at its end; negative parts lie left of 0."""

    label: str
    parts: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Part:
    """How one part of every bar looks."""

    colour: str
    hatch: str = ""


def scatter_panel(
    points: Sequence[Point], frame: Sequence[Point], front: Float[np.ndarray, "N 2"], x_label: str, y_label: str
) -> str:
    """Labelled points with thin intervals, and a dashed line along `front`; the axes show all of `frame` and y = 0."""

    def draw(axes: Axes) -> None:
        _set_limits(axes, frame)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        axes.plot(front[:, 0], front[:, 1], color=INK, linestyle="--", linewidth=1.2, alpha=0.7, zorder=1)
        for point in points:
            _draw_point(axes, point)
        _draw_labels(axes, points)

    return panel_svg(draw, x_label, y_label, height=4.4)


def dot_panel(
    rows: Sequence[str],
    dots: Sequence[Dot],
    label: str,
    *,
    zero: float | None = None,
    limits: tuple[float, float] | None = None,
    row_height: float = ROW_HEIGHT,
) -> str:
    """Points with their intervals in named rows, first row on top; `zero` is a vertical, height in inches."""

    def draw(axes: Axes) -> None:
        for mark in dict.fromkeys(dot.mark for dot in dots):
            _draw_dots(axes, [dot for dot in dots if dot.mark == mark], mark)
        # bands tell rows apart whose dots stand one above the other
        for row in range(1, len(rows), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.1, linewidth=0, zorder=0)
        if zero is not None:
            axes.axvline(zero, color=INK, linewidth=1, zorder=1)
        if limits is not None:
            axes.set_xlim(*limits)
        _name_rows(axes, rows)

    return panel_svg(draw, label, "", height=0.65 + row_height * max(len(rows), 3))


def spread_in_row(count: int) -> list[float]:
    """Where in a row, from its middle, each of so many dots stands."""
    return [float(shift) for shift in 0.8 * ((np.arange(count) + 0.5) / count - 0.5)]


def stack_panel(stacks: Sequence[Stack], parts: Sequence[Part], label: str, limits: tuple[float, float]) -> str:
    """Horizontal bars made of parts side by side, away from 0 on either side, with a text at the right end."""

    def draw(axes: Axes) -> None:
        for row, stack in enumerate(stacks):
            _draw_stack(axes, row, stack, parts)
        axes.axvline(0, color=INK, linewidth=1)
        _name_rows(axes, [stack.label for stack in stacks])
        # the texts at the bars' ends are no part of what matplotlib makes room for
        axes.set_xlim(limits[0], limits[1] + TEXT_ROOM * (limits[1] - limits[0]))

    return panel_svg(draw, label, "", height=0.65 + ROW_HEIGHT * max(len(stacks), 3))


def spread_limits(
    values: Float[np.ndarray, " N"], halves: Float[np.ndarray, " N"], most_interval: float
) -> tuple[float, float]:
    """Ends of an axis that shows all values, and their intervals up to `most_interval` times the values' range."""
    span = max(float(np.ptp(values)), 0.1 * float(np.abs(values).max()), 1e-3)
    halves = np.minimum(np.nan_to_num(halves), most_interval * span)
    return float((values - halves).min() - MARGIN * span), float((values + halves).max() + MARGIN * span)


def linear_within(values: Float[np.ndarray, " N"]) -> float | None:
    """Up to which distance from 0 an axis of these values is linear, a power of ten; None if it is so everywhere."""
    sizes = np.abs(values)[values != 0]
    if not sizes.size or sizes.max() <= WIDE * np.median(sizes):
        return None
    return float(10.0 ** np.floor(np.log10(np.median(sizes))))


def _set_limits(axes: Axes, frame: Sequence[Point]) -> None:
    x, x_half, y, y_half = np.array([[one.x, one.x_half, one.y, one.y_half] for one in frame]).T
    axes.set_xlim(*spread_limits(x, x_half, MOST_INTERVAL))
    y, y_half = np.append(y, 0.0), np.append(y_half, 0.0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if (threshold := linear_within(y)) is not None:
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.7)
        axes.yaxis.set_minor_locator(NullLocator())
    # limits in what the axis draws: there a margin is as wide below as above
    drawn, y_half = axes.yaxis.get_transform(), np.nan_to_num(y_half)
    low, middle, high = (drawn.transform(values) for values in (y - y_half, y, y + y_half))
    ends = spread_limits(middle, np.maximum(middle - low, high - middle), MOST_INTERVAL)
    limits = drawn.inverted().transform(np.array(ends))
    if threshold is not None:
        axes.yaxis.set_major_locator(FixedLocator(_symmetric_ticks(threshold, *limits)))
    axes.set_ylim(*limits)
    axes.yaxis.set_major_formatter(FuncFormatter(tick_text))


def _symmetric_ticks(threshold: float, low: float, high: float) -> list[float]:
    decades = np.arange(np.log10(threshold), np.log10(max(abs(low), abs(high), threshold)) + 1)
    sizes = [factor * 10.0**decade for decade in decades for factor in (1, 3)]
    return [tick for tick in [*(-size for size in sizes[::-1]), 0.0, *sizes] if low <= tick <= high]


def _style(mark: Mark) -> dict[str, Any]:
    colour = drawn_colour(mark.colour)
    return {
        "color": colour,
        "marker": mark.marker,
        "markersize": mark.size,
        "markerfacecolor": colour if mark.is_filled else "none",
        "markeredgewidth": 1.1,
        "linestyle": "",
    }


def _draw_dots(axes: Axes, dots: Sequence[Dot], mark: Mark) -> None:
    row, value, half = np.array([[dot.row, dot.value, dot.half_interval] for dot in dots]).T
    axes.errorbar(value, row, xerr=np.nan_to_num(half), **_style(mark), elinewidth=1, zorder=3)


def _draw_point(axes: Axes, point: Point) -> None:
    style = _style(point.mark)
    x_half, y_half = np.nan_to_num([point.x_half, point.y_half])
    line = {"color": style["color"], "elinewidth": 0.7, "alpha": 0.45}
    axes.errorbar(point.x, point.y, xerr=x_half, yerr=y_half, linestyle="", **line, zorder=2)
    axes.plot(point.x, point.y, **style, zorder=3)


def _draw_labels(axes: Axes, points: Sequence[Point]) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_printers = 72 / figure.dpi
    area = axes.get_window_extent()
    places = axes.transData.transform([(point.x, point.y) for point in points]) - [area.x0, area.y0]
    widths = [LETTER_WIDTH * LABEL_SIZE * len(point.label) for point in points]
    sizes = np.array([[width, LETTER_HEIGHT * LABEL_SIZE] for width in widths])
    places = places * to_printers
    centres = place_labels(places, sizes, np.array([area.width, area.height]) * to_printers)
    for point, place, centre, size in zip(points, places, centres, sizes, strict=True):
        line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2.5}
        side = np.sign(place[0] - centre[0]) if abs(place[0] - centre[0]) > size[0] / 2 else 0.0
        axes.annotate(
            point.label,
            (point.x, point.y),
            # anchored on the side that faces the point, so that the page's font cannot tear the two apart
            xytext=(centre[0] - place[0] + side * size[0] / 2, centre[1] - place[1]),
            textcoords="offset points",
            ha={-1.0: "left", 0.0: "center", 1.0: "right"}[float(side)],
            va="center_baseline",
            fontsize=LABEL_SIZE,
            arrowprops=line if needs_line(place, centre, size) else None,
        ).set_in_layout(False)


def _draw_stack(axes: Axes, row: int, stack: Stack, parts: Sequence[Part]) -> None:
    ends = {True: 0.0, False: 0.0}
    for value, part in zip(stack.parts, parts, strict=True):
        look = {"facecolor": drawn_colour(part.colour), "edgecolor": INK, "alpha": 0.55, "hatch": part.hatch}
        axes.barh(row, value, left=ends[value < 0], height=0.66, linewidth=0, **look)
        ends[value < 0] += value
    axes.annotate(
        stack.text,
        (ends[False], row),
        xytext=(3, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=LABEL_SIZE,
    ).set_in_layout(False)


def _name_rows(axes: Axes, rows: Sequence[str]) -> None:
    axes.set_yticks(range(len(rows)), rows, fontsize=LABEL_SIZE + 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
