"""Figures of which experts work together: a matrix a layer, and how evenly each expert shares its tokens.

Curves of the figure "collaboration" are rows of matrices: series "expert 3" of panel "layer 0" holds at x = j the share
of expert 3's co-activations that falls to expert j. Rows come in the order in which they are to be drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from benchmarks.curves import Curve, first_run
from benchmarks.panels import Figure, Key, Line, Panel, Scale, line_panel, matrix_panel
from benchmarks.record_figures import natural
from benchmarks.svg import ordered_colour

MOST_LAYERS_DRAWN, MOST_EXPERTS_DRAWN = 6, 32
DEGREE_POINTS = 60
# series of the degree figure that are no layers, and how they are drawn
REFERENCES = {"random partners": "--", "threshold": ":"}


def matrix_figure(curves: Sequence[Curve]) -> Figure | None:
    """Who works with whom, a panel a layer; of one run, because experts of different runs have no common order."""
    if not curves:
        return None
    setting, seed, layers = first_run(curves)
    names = sorted(layers, key=natural)
    drawn = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, MOST_LAYERS_DRAWN).round().astype(int))]
    matrices = {name: in_blocks(_matrix(layers[name]), MOST_EXPERTS_DRAWN) for name in drawn}
    high = max(float(matrix.max()) for matrix in matrices.values())
    return Figure(
        "collaboration",
        f"Which experts work together, {setting}, seed {seed}",
        _matrix_caption(high, num_experts=len(layers[names[0]])),
        (),
        tuple(Panel(name, _matrix_panel(matrices[name], layers[name], high)) for name in drawn),
    )


def degree_figure(curves: Sequence[Curve]) -> Figure | None:
    """Degrees of all experts in ascending order, a panel a setting, a line a layer, the mean over seeds."""
    if not curves:
        return None
    names = sorted({curve.series for curve in curves}, key=natural)
    layers = [name for name in names if name not in REFERENCES]
    keys = [Key(name, ordered_colour(i, len(layers))) for i, name in enumerate(layers)]
    keys += [Key(name, "ink", dash) for name, dash in REFERENCES.items() if name in names]
    panels = []
    for setting in sorted({curve.setting for curve in curves}):
        here = [curve for curve in curves if curve.setting == setting]
        lines = [_mean_line(key, [curve for curve in here if curve.series == key.label]) for key in keys]
        scales = Scale("share of experts below"), Scale("collaboration degree")
        panels.append(Panel(setting, line_panel([line for line in lines if line.x.size], *scales)))
    return Figure(
        "collaboration_degree",
        "How evenly an expert shares its tokens with the others",
        "Experts in ascending order; 1: with all others alike, 0: with one only. Dashed: experts with the same loads "
        "and no preference for partners; dotted: above it an expert counts as overly collaborative. Mean over "
        f"{len({curve.seed for curve in curves})} seeds.",
        tuple(keys),
        tuple(panels),
    )


def in_blocks(matrix: Float[np.ndarray, "N N"], most: int) -> Float[np.ndarray, "M M"]:
    """Means over at most `most` by `most` blocks of neighbours; a smaller matrix stays as it is."""
    if len(matrix) <= most:
        return matrix
    starts = [block[0] for block in np.array_split(np.arange(len(matrix)), most)]
    sizes = np.diff([*starts, len(matrix)])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return sums / np.outer(sizes, sizes)


def _matrix(rows: Sequence[Curve]) -> Float[np.ndarray, "N N"]:
    """Values with the columns in the order of the rows, whatever order the columns were written in."""
    columns = [_expert(row) for row in rows]
    by_column = [dict(zip(row.x, row.y, strict=True)) for row in rows]
    return np.array([[values.get(column) or 0.0 for column in columns] for values in by_column])


def _matrix_panel(matrix: np.ndarray, rows: Sequence[Curve], high: float) -> str:
    labels = [str(_expert(row)) for row in rows] if len(matrix) == len(rows) else [""] * len(matrix)
    return matrix_panel(matrix, high, labels, label="expert")


def _matrix_caption(high: float, num_experts: int) -> str:
    blocks = f" Neighbours of {num_experts} experts are averaged." if num_experts > MOST_EXPERTS_DRAWN else ""
    return (
        "Shade: how much of the row's expert's co-activations falls to the column's expert; the fullest is "
        f"{100 * high:.0f} %, an even share would be {100 / (num_experts - 1):.0f} %. Experts that work together stand "
        f"side by side, so groups would be squares on the diagonal.{blocks}"
    )


def _expert(row: Curve) -> int:
    return int(row.series.rsplit(" ", 1)[-1])


def _mean_line(key: Key, curves: Sequence[Curve]) -> Line:
    """Mean over runs on a common grid: runs may differ in how many experts are active."""
    runs = [(np.array(curve.x, float), np.array(curve.y, float)) for curve in curves if curve.x]
    grid = np.linspace(0, 1, DEGREE_POINTS) if runs else np.empty(0)
    mean = np.mean([np.interp(grid, x, y) for x, y in runs], axis=0) if runs else np.empty(0)
    return Line(key.label, grid, mean, key.colour, dash=key.dash)
