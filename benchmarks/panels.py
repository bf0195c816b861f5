"""A panel of a figure, drawn by matplotlib and returned as SVG that belongs inside a page.

A panel is as wide as a phone; a figure of several flows into columns. Titles and legends are the page's.
"""

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Real
from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.svg import FAINT, INK, drawn_colour, embed

STYLE: dict[Any, Any] = {
    # text as text: small, searchable, in the page's font
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}

NUM_SHADES = 10


@dataclass(frozen=True)
class Key:
    """One entry of a legend; `colour` and `dash` as in `Line`. A `marker`, as a character, stands instead of a line."""

    label: str
    colour: str
    dash: str = "-"
    marker: str = ""


@dataclass(frozen=True)
class Panel:
    """A drawing and what is written above it."""

    title: str
    svg: str


@dataclass(frozen=True)
class Figure:
    """Panels that share a title, a caption and a legend."""

    name: str
    title: str
    caption: str
    keys: tuple[Key, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True, eq=False)
class Line:
    """One series: y over x, with half an interval's width (NaN where there is none).

    Attributes:
        colour: a CSS variable of `benchmarks.svg`, or "ink" or "faint".
        dash: "-", "--", "-." or ":".
    """

    label: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    colour: str
    half_interval: Float[np.ndarray, " N"] | None = None
    dash: str = "-"
    marker: str = ""
    width: float = 1.4


@dataclass(frozen=True)
class Scale:
    """What an axis shows and whether it is logarithmic."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; `half_interval` is NaN for a single seed."""

    label: str
    value: float
    half_interval: float
    colour: str


def line_panel(lines: Sequence[Line], x: Scale, y: Scale, instants: Sequence[Line] = ()) -> str:
    """Lines over a common x; `instants` are verticals at the first x of each."""

    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, line)
        _set_scale(axes.xaxis, axes.set_xscale, x.log)
        _set_scale(axes.yaxis, axes.set_yscale, y.log)
        for line in instants:
            axes.axvline(line.x[0], color=drawn_colour(line.colour), linestyle=":", linewidth=line.width)

    return panel_svg(draw, x.label, y.label)


def bar_panel(bars: Sequence[Bar], label: str, start: float, bound: float | None = None) -> str:
    """Horizontal bars with their intervals, grown from `start`; `bound` is a dashed vertical."""

    def draw(axes: Axes) -> None:
        for row, bar in enumerate(bars):
            colour = drawn_colour(bar.colour)
            axes.barh(row, bar.value - start, left=start, height=0.62, color=colour, alpha=0.7, linewidth=0)
            if np.isfinite(bar.half_interval):
                axes.errorbar(bar.value, row, xerr=bar.half_interval, color=INK, capsize=3, linewidth=1.2)
        if bound is not None:
            axes.axvline(bound, color=INK, linestyle="--", linewidth=1.2)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    return panel_svg(draw, label, "", height=0.8 + 0.27 * max(len(bars), 3))


def heat_panel(
    values: Float[np.ndarray, "R C"],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_label: str,
    column_label: str,
) -> str:
    """A table of texts whose shade grows with the value; cells that are not finite have none."""
    known = np.isfinite(values)
    low, span = (values[known].min(), np.ptp(values[known])) if known.any() else (0.0, 0.0)
    shades = np.where(known, 1 + np.round((NUM_SHADES - 1) * (values - low) / (span or 1.0)), 0)

    def draw(axes: Axes) -> None:
        _draw_shades(axes, shades, darkest=0.6)
        for row, column in itertools.product(range(len(rows)), range(len(columns))):
            axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False)

    return panel_svg(draw, column_label, row_label, height=0.8 + 0.36 * max(len(rows), 3))


def matrix_panel(values: Float[np.ndarray, "N N"], high: float, labels: Sequence[str], *, label: str) -> str:
    """A square of shades without texts, from none at 0 to full at `high` and above; rows and columns share labels."""
    shades = np.clip(np.ceil(NUM_SHADES * values / (high or 1.0)), 0, NUM_SHADES)
    places = range(len(values))

    def draw(axes: Axes) -> None:
        _draw_shades(axes, shades, darkest=1.0)
        axes.set_xticks(places, labels, fontsize=6, rotation=90)
        axes.set_yticks(places, labels, fontsize=6)
        axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(places) - 0.5, -0.5), aspect="equal")
        axes.grid(visible=False)

    return panel_svg(draw, label, label, height=4.2)


def _draw_shades(axes: Axes, shades: Real[np.ndarray, "R C"], darkest: float) -> None:
    """Cells from no shade at 0 to the darkest at NUM_SHADES; a path a shade, as a path a cell would be many bytes."""
    for shade in range(1, NUM_SHADES + 1):
        colour = drawn_colour("--method-0")
        axes.add_patch(PathPatch(_squares(shades == shade), color=colour, alpha=darkest * shade / NUM_SHADES, lw=0))


def _squares(where: Bool[np.ndarray, "R C"]) -> Path:
    """Nearly touching unit squares on the marked cells, as one path."""
    corners = 0.47 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    vertices = np.argwhere(where)[:, None, ::-1] + corners
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(vertices))
    return Path(vertices.reshape(-1, 2), codes)


def _draw_line(axes: Axes, line: Line) -> None:
    colour = drawn_colour(line.colour)
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linestyle=line.dash,
        linewidth=line.width,
        marker=line.marker,
        markersize=3.5,
    )
    if line.half_interval is not None and np.isfinite(line.half_interval).any():
        half = np.nan_to_num(line.half_interval)
        axes.errorbar(line.x, line.y, yerr=half, color=colour, linestyle="", capsize=2.5, linewidth=1)


def _set_scale(axis: MatplotlibAxis, set_scale: Callable[[str], None], log: bool) -> None:
    if not log:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(tick_text))
        return
    set_scale("log")
    low, high = sorted(axis.get_view_interval())
    # within two decades powers of ten alone leave an axis almost without labels
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(tick_text))


def tick_text(value: float, _: int) -> str:
    """A number on an axis, as matplotlib's formatters are called."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def panel_svg(draw: Callable[[Axes], None], x_label: str, y_label: str, height: float = 2.7) -> str:
    """What `draw` draws, as SVG; height in inches, the width is every panel's."""
    # the salt fixes the ids inside the SVG: the same data give the same bytes
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "moelab"}):
        canvas = Canvas(figsize=(4.4, height), layout="constrained", dpi=140)
        axes = canvas.add_subplot()
        draw(axes)
        axes.set(xlabel=x_label, ylabel=y_label)
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return embed(file.getvalue(), f"{y_label} against {x_label}" if y_label else x_label)
