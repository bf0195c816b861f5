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
from benchmarks.forecaster import build_predictor, method_name, origins_by_state
from benchmarks.recorded import read_run, with_run
from benchmarks.rows import Rows, mean_where
from placement.balance import balance, device_load, lower_bound
from placement.contiguous import contiguous
from placement.topology import Placement, Topology
from predictors.backtest import forecast_at, rolling_origins

Planner = Callable[[np.ndarray], Placement]
CONTIGUOUS, LOWER_BOUND = "contiguous", "lower_bound"
MAX_OVER_MEAN = "max_over_mean"


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Plan at every origin, then score the plan on the iterations after it."""
    trace = read_run(config)
    predictor = build_predictor(config)
    horizons = list(config.backtest.horizons)
    cutoffs = rolling_origins(trace, config.backtest.first, config.backtest.stride, max(horizons))
    forecasts = [forecast_at(predictor, trace, int(cutoff), max(horizons)).proportion for cutoff in cutoffs]
    by_state = origins_by_state(config, trace, cutoffs)
    topology: Topology = instantiate(config.topology)
    planner = partial(_plan, instantiate(config.placement), topology=topology)
    rows = Rows(config, ground="trace")
    for horizon in horizons:
        futures = [trace.proportion[cutoff : cutoff + horizon] for cutoff in cutoffs]
        scores = score(planner, topology, [forecast[:horizon] for forecast in forecasts], futures)
        for state, chosen_OL in by_state.items():
            add_scores(rows, scores, horizon, state, chosen_OL)
    return Measurement(rows.records, data_fingerprint=trace.source.fingerprint())


def score(
    planner: Planner, topology: Topology, forecasts: list[np.ndarray], futures: list[np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Balance of device loads (O, L) by method and measure, each iteration of the future by itself, then averaged."""
    fixed = _plan(contiguous, futures[0][0], topology=topology)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for forecast_HLE, future_HLE in zip(forecasts, futures, strict=True):
        plans = {
            CONTIGUOUS: fixed,
            planned_by(): planner(forecast_HLE.mean(0)),
            # what the same planner would do if it knew the mean load that comes
            oracle(): planner(future_HLE.mean(0)),
        }
        for name, plan in plans.items():
            for measure_name, values_HL in balance(device_load(future_HLE, plan)).items():
                found.setdefault((name, measure_name), []).append(values_HL.mean(0))
        bound_HL = lower_bound(future_HLE, topology.num_devices)
        found.setdefault((LOWER_BOUND, MAX_OVER_MEAN), []).append(bound_HL.mean(0))
    return {key: np.stack(values) for key, values in found.items()}


def add_scores(
    rows: Rows, scores: dict[tuple[str, str], np.ndarray], horizon: int, state: str, chosen_OL: np.ndarray
) -> None:
    """Rows of device balance by method, and the share of the oracle's saving that the forecast kept."""
    columns = {"horizon": horizon, "state": state}
    means = {key: mean_where(values_OL, chosen_OL, axis=0) for key, values_OL in scores.items()}
    for (method, measure_name), values_L in means.items():
        rows.by_layer(f"device_{measure_name}", values_L, method=method, **columns)
    if chosen_OL.any():
        planned, known = (
            np.nanmean(means[CONTIGUOUS, MAX_OVER_MEAN] - means[name, MAX_OVER_MEAN])
            for name in (planned_by(), oracle())
        )
        rows.add("saving_kept", float(planned / known), method=planned_by(), **columns)


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
