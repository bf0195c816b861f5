"""How even is the load of devices when experts are placed by a forecast, scored on the load that comes?

python -m benchmarks.place_experts trace.setting=nano16 trace.seed=0 trace.scale=cpu predictor=sw_avg_100 placement=lpt
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.forecaster import build_predictor, method_name
from benchmarks.recorded import read_run, with_run
from benchmarks.rows import Rows, mean_where
from placement.balance import device_load, lower_bound, max_over_mean
from placement.contiguous import contiguous
from placement.topology import Placement, Topology
from predictors.backtest import forecast_at, rolling_origins
from predictors.states import detect_states

Planner = Callable[[np.ndarray], Placement]
CONTIGUOUS, LOWER_BOUND = "contiguous", "lower_bound"


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Plan at every origin, then score the plan on the iterations after it."""
    trace = read_run(config)
    predictor = build_predictor(config)
    horizons = list(config.backtest.horizons)
    cutoffs = rolling_origins(trace, config.backtest.first, config.backtest.stride, max(horizons))
    forecasts = [forecast_at(predictor, trace, int(cutoff), max(horizons)).proportion for cutoff in cutoffs]
    stable_OL = detect_states(trace.proportion, **config.detector).stable[cutoffs - 1]
    topology: Topology = instantiate(config.topology)
    planner = partial(_plan, instantiate(config.placement), topology=topology)
    rows = Rows(config, ground="trace")
    for horizon in horizons:
        futures = [trace.proportion[cutoff : cutoff + horizon] for cutoff in cutoffs]
        scores = score(planner, topology, [forecast[:horizon] for forecast in forecasts], futures)
        for state, chosen_OL in (("transient", ~stable_OL), ("stable", stable_OL)):
            add_scores(rows, scores, horizon, state, chosen_OL)
    return Measurement(rows.records, data_fingerprint=trace.source.fingerprint())


def score(
    planner: Planner, topology: Topology, forecasts: list[np.ndarray], futures: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Device load max/mean (O, L) by method, each iteration of the future by itself and then averaged."""
    fixed = _plan(contiguous, futures[0][0], topology=topology)
    found: dict[str, list[np.ndarray]] = {}
    for forecast_HLE, future_HLE in zip(forecasts, futures, strict=True):
        plans = {
            CONTIGUOUS: fixed,
            planned_by(): planner(forecast_HLE.mean(0)),
            # what the same planner would do if it knew the mean load that comes
            oracle(): planner(future_HLE.mean(0)),
        }
        for name, plan in plans.items():
            found.setdefault(name, []).append(max_over_mean(device_load(future_HLE, plan)).mean(0))
        found.setdefault(LOWER_BOUND, []).append(lower_bound(future_HLE, topology.num_devices).mean(0))
    return {name: np.stack(values) for name, values in found.items()}


def add_scores(rows: Rows, scores: dict[str, np.ndarray], horizon: int, state: str, chosen_OL: np.ndarray) -> None:
    """Rows of device load by method, and the share of the oracle's saving that the forecast kept."""
    means = {name: mean_where(values_OL, chosen_OL, axis=0) for name, values_OL in scores.items()}
    for name, values_L in means.items():
        rows.by_layer("device_max_over_mean", values_L, method=name, horizon=horizon, state=state)
    if chosen_OL.any():
        saved = {name: np.nanmean(means[CONTIGUOUS] - means[name]) for name in (planned_by(), oracle())}
        kept = float(saved[planned_by()] / saved[oracle()])
        rows.add("saving_kept", kept, method=planned_by(), horizon=horizon, state=state)


def planned_by() -> str:
    """The method's name in the records: planner and predictor."""
    return f"{_choices()['placement']}/{method_name()}"


def oracle() -> str:
    """The same planner's name when it knows the load that comes."""
    return f"{_choices()['placement']}/oracle"


def _choices() -> Any:
    return HydraConfig.get().runtime.choices


def _plan(planner: Callable[..., Placement], load_LE: np.ndarray, topology: Topology) -> Placement:
    return planner(load_LE, topology, slots_per_device=-(-load_LE.shape[-1] // topology.num_devices))


@hydra.main(config_path="../conf", config_name="place_experts", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_run(config)
        run_cell(config, [config.setting, f"seed{config.seed}", planned_by().replace("/", "_")], measure)


if __name__ == "__main__":
    main()
