"""The figures of an experiment: what its curves and records can show, in the order of the story.

A figure whose data is missing is left out. Curves come from `curves/CELL.json`:

    {"curves": [{"figure": "range_100", "panel": "all layers", "series": "layer 0", "x": [...], "y": [...],
                 "setting": "nano16", "seed": 0}, ...]}

`null` in y is a gap. A figure of a name not known here is drawn too, a line a series.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collaboration_figures import degree_figure, matrix_figure
from benchmarks.curves import Curve, first_run
from benchmarks.panels import Figure, Key, Line, Panel, Scale, line_panel
from benchmarks.quality_figures import quality_figures
from benchmarks.record import Cell, Record
from benchmarks.record_figures import (
    device_load_figure,
    forecast_figures,
    method_keys,
    natural,
    sensitivity_figure,
)
from benchmarks.router_figures import router_figures
from benchmarks.step_figures import step_parts_figure
from benchmarks.svg import method_colour, ordered_colour
from benchmarks.walltime_figures import walltime_figures

# what one figure may weigh: more points are not seen, and a page of a dozen figures stays small
POINTS_PER_FIGURE, FEWEST_POINTS, MOST_POINTS = 4_800, 50, 400
MOST_EXPERTS_DRAWN = 32
LAYER = re.compile(r"layer \d+")
# drawn by layer on a log axis, in this order
LAYER_FIGURES = re.compile(r"(variance|range)_\d+|drift|probe_drift")

# figure -> title, y axis, caption; {} is the window's length
TEXTS = {
    "variance": ("Variance of load shares in windows of {} steps", "variance", ""),
    "range": ("Range of load shares in windows of {} steps", "max - min", ""),
    "drift": (
        "Drift of load shares",
        "drift",
        "Dashed: the detector's threshold; dotted: the step from which a layer is stable, if it becomes so.",
    ),
    "probe_drift": (
        "Drift of the routing of a fixed held-out batch",
        "drift",
        "The same tokens routed again and again: what is left is change of the model, not of the data.",
    ),
    "error_over_training": (
        "Forecast error over training",
        "error",
        "Error of forecasts made at a step, from what was recorded before it.",
    ),
}


def read_curves(folder: Path) -> list[Curve]:
    """All curves of an experiment, cell by cell; ValueError names a file that holds something else."""
    curves = []
    for path in sorted(folder.glob("*.json")):
        try:
            curves += parse_curves(json.loads(path.read_text(encoding="utf-8"))["curves"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a list of curves ({error})") from None
    return curves


def parse_curves(items: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Curves from a cell's plain data; KeyError, TypeError or ValueError where something is missing or no number."""
    return [_parse_curve(item) for item in items]


def draw_figures(records: Sequence[Record], curves: Sequence[Curve], cells: Sequence[Cell]) -> list[Figure]:
    """Every figure that the data of an experiment allows."""
    by_name: dict[str, list[Curve]] = {}
    for curve in curves:
        by_name.setdefault(curve.figure, []).append(curve)
    figures = [_load_proportion(by_name.pop("load_proportion", []))]
    by_layer = [name for name in by_name if LAYER_FIGURES.fullmatch(name)]
    for name in sorted(by_layer, key=lambda name: ("drift" in name, "range" in name, natural(name))):
        marks = _Marks(_stable_steps(records), _thresholds(cells)) if name == "drift" else _Marks({}, [])
        figures.append(_lines_figure(name, [_line_a_layer(curve) for curve in by_name.pop(name)], {}, marks))
    figures += forecast_figures(records)
    of_routers = [*router_figures(records), *quality_figures(records)]
    figures += [*of_routers, *walltime_figures(records), step_parts_figure(records)]
    figures += [matrix_figure(by_name.pop("collaboration", [])), degree_figure(by_name.pop("collaboration_degree", []))]
    keys = method_keys(records)
    figures += [_lines_figure(name, by_name[name], keys, _Marks({}, [])) for name in sorted(by_name)]
    # routers' figures mark the load of the busiest device
    figures += [None if of_routers else device_load_figure(records), sensitivity_figure(records)]
    return [figure for figure in figures if figure is not None]


@dataclass(frozen=True)
class _Marks:
    """What is drawn beside the curves: steps at which a layer of a setting turned stable, and thresholds."""

    stable_steps: Mapping[tuple[str, str], float]
    thresholds: list[float]


def _parse_curve(item: Mapping[str, Any]) -> Curve:
    x = [float(value) for value in item["x"]]
    y = [None if value is None else float(value) for value in item["y"]]
    curve = Curve(**{**item, "x": x, "y": y})
    if len(curve.x) != len(curve.y):
        raise ValueError(f"x has {len(curve.x)} points and y {len(curve.y)} in {curve.figure} of {curve.panel}")
    return curve


def _load_proportion(curves: list[Curve]) -> Figure | None:
    """A panel a layer, a line an expert; one run, because shares of different seeds have no common order."""
    if not curves:
        return None
    setting, seed, layers = first_run(curves)
    num_lines = sum(min(len(experts), MOST_EXPERTS_DRAWN) for experts in layers.values())
    panels = [Panel(layer, _shares(layers[layer], num_lines)) for layer in sorted(layers, key=natural)]
    most = max(map(len, layers.values()))
    drawn = "Every expert" if most <= MOST_EXPERTS_DRAWN else f"{MOST_EXPERTS_DRAWN} of {most} experts"
    return Figure(
        "load_proportion",
        f"Share of routed tokens, {setting}, seed {seed}",
        f"{drawn}, coloured by its share at the end, from the least (violet, blue) to the most (green, "
        "yellow); dashed: the even share.",
        (Key("even share", "ink", "--"),),
        tuple(panels),
    )


def _shares(experts: list[Curve], num_lines: int) -> str:
    ranked = sorted(experts, key=lambda curve: curve.y[-1] or 0.0 if curve.y else 0.0)
    chosen = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), MOST_EXPERTS_DRAWN)).round().astype(int))
    lines = []
    for rank in chosen:
        x, y = _thinned(*_arrays(ranked[rank]), num_lines)
        lines.append(Line(ranked[rank].series, x, y, ordered_colour(int(rank), len(ranked)), width=0.9))
    ends = np.array([lines[0].x[0], lines[0].x[-1]]) if lines[0].x.size else np.empty(0)
    even = Line("even share", ends, np.full(ends.shape, 1 / len(ranked)), "ink", dash="--", width=1.0)
    return line_panel([*lines, even], Scale("step"), Scale("share"))


def _line_a_layer(curve: Curve) -> Curve:
    """Panel and series change places where it is the panel that names the layer."""
    if LAYER.fullmatch(curve.panel) and not LAYER.fullmatch(curve.series):
        return replace(curve, panel=curve.series, series=curve.panel)
    return curve


def _lines_figure(name: str, curves: list[Curve], known: Mapping[str, Key], marks: _Marks) -> Figure:
    """A panel for each setting and panel, a line a series, the mean over seeds.

    Series that are methods keep the colour that they have in the experiment's other figures (`known`).
    """
    title, y_label, caption = _texts(name)
    names = sorted({curve.series for curve in curves}, key=natural)
    keys = {one: known.get(one) or _key(one, i, len(names)) for i, one in enumerate(names)}
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.setting, curve.panel), []).append(curve)
    panels = []
    for setting, panel in sorted(groups, key=lambda group: (group[0], natural(group[1]))):
        here = groups[setting, panel]
        lines = [_mean_line(key, here, len(groups) * len(names)) for key in keys.values()]
        several = len({panel for _, panel in groups}) > 1 or panel not in ("", "all layers")
        svg = _lines_panel([line for line in lines if line.x.size], y_label, setting, marks)
        panels.append(Panel(f"{setting}, {panel}" if several else setting, svg))
    legend = [*keys.values(), *([Key("threshold", "ink", "--")] if marks.thresholds else [])]
    text = f"{caption} {_mean_of(curves)}".strip()
    return Figure(name, title, text, tuple(legend), tuple(panels))


def _texts(name: str) -> tuple[str, str, str]:
    """Title, y axis and caption of a figure."""
    if windowed := re.fullmatch(r"(variance|range)_(\d+)", name):
        title, y_label, caption = TEXTS[windowed[1]]
        return title.format(windowed[2]), y_label, caption
    spoken = name.replace("_", " ")
    return TEXTS.get(name, (spoken[:1].upper() + spoken[1:], spoken, ""))


def _key(name: str, rank: int, count: int) -> Key:
    return Key(name, ordered_colour(rank, count) if LAYER.fullmatch(name) else method_colour(rank))


def _mean_line(key: Key, curves: list[Curve], num_lines: int) -> Line:
    x, y = _mean([curve for curve in curves if curve.series == key.label])
    return Line(key.label, *_thinned(x, y, num_lines), key.colour, dash=key.dash)


def _lines_panel(lines: list[Line], y_label: str, setting: str, marks: _Marks) -> str:
    values = np.concatenate([line.y for line in lines]) if lines else np.empty(0)
    values = values[values > 0]
    is_wide = values.size > 0 and values.max() > 20 * values.min()
    ends = np.array([line.x[[0, -1]] for line in lines]).reshape(-1, 2)
    for threshold in marks.thresholds if lines else []:
        x = np.array([ends.min(), ends.max()])
        lines = [*lines, Line("threshold", x, np.full(2, threshold), "ink", dash="--", width=1.0)]
    instants = [
        replace(line, x=np.array([marks.stable_steps[setting, line.label]]), y=np.full(1, np.nan), width=1.1)
        for line in lines
        if (setting, line.label) in marks.stable_steps
    ]
    return line_panel(lines, Scale("step"), Scale(y_label, log=bool(is_wide)), instants)


def _stable_steps(records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """(setting, "layer 0") -> mean over the seeds in which that layer becomes stable."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        # a detector that found no such step says so by -1 or infinity
        if record.metric == "stable_step" and record.method == "-" and 0 <= record.value < np.inf:
            found.setdefault((record.setting, f"layer {record.layer}"), []).append(record.value)
    return {key: float(np.mean(steps)) for key, steps in found.items()}


def _thresholds(cells: Iterable[Cell]) -> list[float]:
    """The drift at which the detectors that the cells were run with call a layer calm."""
    detectors = [cell.config.get("detector") or {} for cell in cells]
    return sorted({float(detector["enter"]) for detector in detectors if "enter" in detector})


def _mean(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds on the first seed's grid, as far as all seeds reach."""
    runs = [_arrays(curve) for curve in sorted(curves, key=lambda curve: curve.seed) if curve.x]
    if not runs:
        return np.empty(0), np.empty(0)
    low, high = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    grid = runs[0][0][(runs[0][0] >= low) & (runs[0][0] <= high)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in runs], axis=0)


def _arrays(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return np.array(curve.x, dtype=float), np.array(curve.y, dtype=float)


def _thinned(x: np.ndarray, y: np.ndarray, num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Every n-th point and the last: unlike a mean, that keeps the fluctuation visible."""
    most = int(np.clip(POINTS_PER_FIGURE // max(num_lines, 1), FEWEST_POINTS, MOST_POINTS))
    chosen = np.unique(np.linspace(0, max(x.size - 1, 0), min(x.size, most)).round().astype(int))
    return x[chosen], y[chosen]


def _mean_of(curves: Iterable[Curve]) -> str:
    seeds = sorted({curve.seed for curve in curves})
    return f"Mean over seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else f"Seed {seeds[0]}."
