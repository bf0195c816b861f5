"""When do expert loads turn from fluctuating to stable?

python -m benchmarks.load_states trace.setting=nano16 trace.seed=0 trace.scale=cpu
"""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.curves import Curves
from benchmarks.recorded import read_run, training_folder, with_run
from benchmarks.rows import Rows
from predictors.states import (
    States,
    detect_states,
    noise_dispersion,
    probe_drift,
    sensitivity,
    window_range,
    window_variance,
)
from traces.load import LoadTrace
from traces.store import read_loads

EDGE = 10  # the run's first and last tenth are compared
SHOWN_STEPS = 250


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Fluctuation, states and their sensitivity for one run."""
    trace = read_run(config)
    states = detect_states(trace.proportion, step=trace.step, **config.detector)
    rows, curves = Rows(config), Curves(config)
    add_fluctuation(rows, curves, trace, list(config.windows))
    add_states(rows, curves, trace, states, config.detector.window)
    add_sensitivity(rows, trace, config)
    if config.trace.path is None:
        add_probe(rows, curves, read_loads(training_folder(config, config.seed) / "probe"))
    if config.seed == 0:
        # the report shows one run's
        add_proportions(curves, trace)
    return Measurement(rows.records, curves.series, trace.source.fingerprint())


def add_fluctuation(rows: Rows, curves: Curves, trace: LoadTrace, windows: list[int]) -> None:
    """The paper's figures: variance of the proportion in short and long windows, range in the long one."""
    figures = {f"variance_{w}": window_variance(trace.proportion, w).mean(-1) for w in windows}
    figures[f"range_{windows[-1]}"] = window_range(trace.proportion, windows[-1]).mean(-1)
    for name, values_WL in figures.items():
        first, last = edges(values_WL)
        rows.by_layer(f"{name}_first", first)
        rows.by_layer(f"{name}_last", last)
        rows.by_layer(f"{name}_fall", first / last)
        # the first layer against the liveliest of the others, over the whole run
        whole = values_WL.mean(0)
        if len(whole) > 1:
            rows.add(f"{name}_first_layer_ratio", float(whole[0] / whole[1:].max()))
        curves.by_layer(name, trace.step[len(trace.step) - len(values_WL) :], values_WL)


def add_states(rows: Rows, curves: Curves, trace: LoadTrace, states: States, window: int) -> None:
    """Our detector's verdict: from which step on each layer is stable."""
    rows.by_layer("stable_step", stable_step(states.stable_step))
    rows.add("stable_share", float((states.stable_step >= 0).mean()))
    rows.by_layer("stable_time", states.stable.mean(0))
    rows.by_layer("noise_dispersion", np.nanmean(noise_dispersion(trace.tokens, window), axis=0))
    curves.by_layer("drift", states.steps, states.drift)


def add_sensitivity(rows: Rows, trace: LoadTrace, config: DictConfig) -> None:
    """The stable step under every pair of the detector's two parameters."""
    windows, thresholds = list(config.sensitivity.windows), list(config.sensitivity.thresholds)
    steps = sensitivity(trace.proportion, windows, thresholds)
    for i, window in enumerate(windows):
        for j, threshold in enumerate(thresholds):
            rows.by_layer("stable_step", stable_step(steps[i, j]), method=f"w{window}_t{threshold}")


def stable_step(step_L: np.ndarray) -> np.ndarray:
    """Steps with infinity for never (-1), so that a mean over layers cannot pass for an early one."""
    return np.where(step_L < 0, np.inf, step_L)


def add_probe(rows: Rows, curves: Curves, probe: LoadTrace) -> None:
    """Drift of a fixed batch's loads: the router alone, without the data's noise."""
    drift = probe_drift(probe.tokens, probe.step)
    first, last = edges(drift)
    rows.by_layer("probe_drift_first", first)
    rows.by_layer("probe_drift_last", last)
    rows.by_layer("probe_drift_fall", first / np.maximum(last, np.finfo(float).tiny))
    curves.by_layer("probe_drift", probe.step[1:], drift)


def add_proportions(curves: Curves, trace: LoadTrace) -> None:
    """Every expert's share over training, a panel a layer: single steps, as means would hide the fluctuation."""
    shown = slice(None, None, -(-len(trace.step) // SHOWN_STEPS))
    for layer in range(trace.num_layers):
        for expert in range(trace.num_experts):
            share = trace.proportion[shown, layer, expert]
            curves.add("load_proportion", f"layer {layer}", f"expert {expert}", trace.step[shown], share, SHOWN_STEPS)


def edges(values_SL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (L,) over the first and over the last tenth of a series."""
    size = max(1, len(values_SL) // EDGE)
    return values_SL[:size].mean(0), values_SL[-size:].mean(0)


@hydra.main(config_path="../conf", config_name="load_states", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_run(config)
        run_cell(config, [config.setting, f"seed{config.seed}"], measure)


if __name__ == "__main__":
    main()
