"""Figures drawn from records: means over seeds with their 95 % intervals."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.panels import Bar, Figure, Key, Line, Panel, Scale, bar_panel, heat_panel, line_panel
from benchmarks.point_panels import MARKERS
from benchmarks.record import Record
from benchmarks.svg import method_colour, method_dash
from benchmarks.verdict import over_seeds

ERRORS = ("relative_error", "relative_error_of_mean", "total_variation")
FLOORS = {
    "floor": ("floor: independent tokens", "--"),
    "floor_empirical": ("floor: the data's own noise", ":"),
}
DEVICE_LOAD = "device_max_over_mean"
# the row of DEVICE_LOAD that no placement can go below
LOWER_BOUND = "lower_bound"
SENSITIVITY = re.compile(r"w(\d+)_t([\d.]+)")
LINES_CAPTION = (
    "Mean over seeds with its 95 % interval, methods shifted sideways a little. No forecast can be expected to go "
    "below a floor; the one of independent tokens is too low for real text."
)
TABLE_CAPTION = (
    "Mean over seeds, the least error at the longest horizon first; the darker, the further above the least of its "
    "column. Methods that forecast a sample of the series compare with one another alone."
)
STATES = ("transient", "stable", "all")
# in one figure; of more, only those of all steps together are drawn, where there are any
MOST_BARS = 250
# in one panel of forecast errors; of more, the errors stand in a table
MOST_LINES = 12


def method_keys(records: Iterable[Record]) -> dict[str, Key]:
    """A colour a method, the same in every figure of an experiment; when colours run out, dashes differ."""
    names = sorted({record.method for record in records} - {"-", LOWER_BOUND}, key=natural)
    names = [name for name in names if not SENSITIVITY.fullmatch(name)]
    return {name: Key(name, method_colour(i), method_dash(i)) for i, name in enumerate(names)}


def forecast_figures(records: Sequence[Record]) -> list[Figure]:
    """Error by horizon, a figure a setting, a panel for each state and metric, a line or a table's row a method."""
    rows = [r for r in records if r.metric in ERRORS and r.horizon > 0 and r.layer == "all"]
    if len({row.horizon for row in rows}) < 2:
        return []
    return [_forecast_figure(setting, rows) for setting in sorted({row.setting for row in rows})]


def device_load_figure(records: Sequence[Record]) -> Figure | None:
    """Load of the busiest device over the mean, a bar a method, panels by setting, state and horizon."""
    rows = [r for r in records if r.metric == DEVICE_LOAD and r.layer == "all"]
    if len({(row.where, row.state, row.horizon, row.method) for row in rows}) > MOST_BARS:
        rows = [row for row in rows if row.state == "all"] or rows
    if not rows:
        return None
    groups = sorted({(row.where, _place(row.state), row.state, row.horizon) for row in rows})
    keys = method_keys(records)
    panels = []
    for where, _, state, horizon in groups:
        here = [row for row in rows if (row.where, row.state, row.horizon) == (where, state, horizon)]
        ahead = f", {horizon:,} ahead" if horizon else ""
        panels.append(Panel(f"{where}, {state}{ahead}", _device_load_panel(here, keys)))
    return Figure(
        "device_load",
        "Load of the busiest device, as a multiple of the mean",
        "1 is perfect balance; bars start there. Mean over seeds with its 95 % interval; dashed: no "
        "placement can go below.",
        (Key("lower bound", "ink", "--"),) if any(row.method == LOWER_BOUND for row in rows) else (),
        tuple(panels),
    )


def sensitivity_figure(records: Sequence[Record]) -> Figure | None:
    """Stable step by the detector's window and threshold, read from methods named like "w100_t0.02"."""
    rows = [r for r in records if r.metric == "stable_step" and SENSITIVITY.fullmatch(r.method)]
    # layers one by one where there are any: in their mean those that never become stable are not to be seen
    rows = [r for r in rows if r.layer != "all"] or rows
    if not rows:
        return None
    panels = [
        Panel(setting, _sensitivity_panel([row for row in rows if row.setting == setting]))
        for setting in sorted({row.setting for row in rows})
    ]
    return Figure(
        "sensitivity",
        "Step from which loads are stable, by the detector's window and threshold",
        "Mean over the layers and seeds that become stable; in brackets the share of them, where not all do.",
        (),
        tuple(panels),
    )


def _forecast_figure(setting: str, rows: Sequence[Record]) -> Figure:
    keys = method_keys(rows)
    mine = [row for row in rows if row.setting == setting]
    present = {row.method for row in mine}
    crowded, panels = len(present) > MOST_LINES, []
    for state in sorted({row.state for row in mine}, key=_place):
        for metric in (metric for metric in ERRORS if any(row.metric == metric for row in mine)):
            here = [row for row in mine if (row.state, row.metric) == (state, metric)]
            if here:
                svg = _error_table(here) if crowded else _forecast_panel(here, keys, spoken(metric))
                panels.append(Panel(f"{state}, {spoken(metric)}", svg))
    name, title = f"forecast_{setting}", f"Forecast error by horizon, {setting}"
    if crowded:
        return Figure(name, title, TABLE_CAPTION, (), tuple(panels))
    floors = [Key(label, "ink", dash) for floor, (label, dash) in FLOORS.items() if _has_floor(mine, floor)]
    legend = (*(key for key in keys.values() if key.label in present), *floors)
    return Figure(name, title, LINES_CAPTION, legend, tuple(panels))


def _error_table(rows: Sequence[Record]) -> str:
    """A row a method, the least error at the longest horizon first, a column a horizon."""
    horizons = sorted({row.horizon for row in rows})
    of = {
        method: [over_seeds(r for r in rows if (r.method, r.horizon) == (method, horizon)).mean for horizon in horizons]
        for method in {row.method for row in rows}
    }
    methods = sorted(of, key=lambda method: (of[method][-1], method))
    values = np.array([of[method] for method in methods])
    texts = [[f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row] for row in values]
    above = np.log(values / np.nanmin(values, axis=0))
    columns = [f"{horizon:,}" for horizon in horizons]
    return heat_panel(above, texts, methods, columns, row_label="", column_label="iterations ahead")


def _forecast_panel(rows: Sequence[Record], keys: dict[str, Key], label: str) -> str:
    lines = []
    for index, key in enumerate(keys.values()):
        mine = [row for row in rows if row.method == key.label]
        if mine:
            shift = 1.04 ** (index - (len(keys) - 1) / 2)
            lines.append(_interval_line(key, mine, shift, list(MARKERS)[index % len(MARKERS)]))
    lines += [_floor_line(name, rows) for name in FLOORS if _has_floor(rows, name)]
    return line_panel(lines, Scale("iterations ahead", log=True), Scale(label, log=True))


def _interval_line(key: Key, rows: Sequence[Record], shift: float, marker: str) -> Line:
    horizons = sorted({row.horizon for row in rows})
    intervals = [over_seeds(row for row in rows if row.horizon == horizon) for horizon in horizons]
    mean = np.array([interval.mean for interval in intervals])
    half = np.array([interval.high for interval in intervals]) - mean
    x = shift * np.array(horizons, dtype=float)
    return Line(key.label, x, mean, key.colour, half_interval=half, dash=key.dash, marker=marker)


def _floor_line(name: str, rows: Sequence[Record]) -> Line:
    """The median over methods: those that are scored on a sample of series have that sample's floor."""
    label, dash = FLOORS[name]
    horizons = sorted({row.horizon for row in rows if np.isfinite(getattr(row, name))})
    floors = []
    for horizon in horizons:
        here = [row for row in rows if row.horizon == horizon]
        means = [over_seeds([r for r in here if r.method == m], name).mean for m in {r.method for r in here}]
        floors.append(np.nanmedian(means))
    return Line(label, np.array(horizons, dtype=float), np.array(floors), "ink", dash=dash, width=1.1)


def _device_load_panel(rows: Sequence[Record], keys: dict[str, Key]) -> str:
    bars = []
    for method in sorted({row.method for row in rows} - {LOWER_BOUND}):
        interval = over_seeds(row for row in rows if row.method == method)
        colour = keys[method].colour if method in keys else method_colour(0)
        bars.append(Bar(method, interval.mean, interval.high - interval.mean, colour))
    bounds = [row.value for row in rows if row.method == LOWER_BOUND]
    bars.sort(key=lambda bar: bar.value)
    return bar_panel(bars, "busiest device / mean", start=1.0, bound=float(np.mean(bounds)) if bounds else None)


def _place(state: str) -> int:
    return STATES.index(state) if state in STATES else len(STATES)


def _sensitivity_panel(rows: Sequence[Record]) -> str:
    cells: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        match = SENSITIVITY.fullmatch(row.method)
        assert match, "rows were selected by their method"
        cells.setdefault((int(match[1]), float(match[2])), []).append(row.value)
    windows = sorted({window for window, _ in cells})
    thresholds = sorted({threshold for _, threshold in cells})
    grid = [[_stable(cells.get((window, threshold), [])) for threshold in thresholds] for window in windows]
    values = np.array([[value for value, _ in row] for row in grid])
    texts = [[text for _, text in row] for row in grid]
    rows_and_columns = ([str(window) for window in windows], [f"{threshold:g}" for threshold in thresholds])
    return heat_panel(values, texts, *rows_and_columns, row_label="window", column_label="threshold")


def _stable(steps: Sequence[float]) -> tuple[float, str]:
    """Mean step and its text; a detector that found no step says so by -1 or infinity."""
    found = [step for step in steps if 0 <= step < np.inf]
    if not found:
        return np.nan, "never" if steps else ""
    mean = float(np.mean(found))
    return mean, f"{mean:,.0f}" + (f" ({len(found) / len(steps):.0%})" if len(found) < len(steps) else "")


def _has_floor(rows: Iterable[Record], name: str) -> bool:
    return any(np.isfinite(getattr(row, name)) for row in rows)


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which "layer 2" comes before "layer 10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def spoken(name: str) -> str:
    """A metric's name as words."""
    return name.replace("_", " ")
