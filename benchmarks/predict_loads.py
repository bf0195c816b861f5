"""How well does a predictor foretell expert loads, beside what sampling alone makes of a perfect forecast?

python -m benchmarks.predict_loads trace.setting=nano16 trace.seed=0 trace.scale=cpu predictor=sw_avg_100
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from jaxtyping import Float, Integer
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.curves import Curves
from benchmarks.forecaster import add_tuning, build_predictor, method_name, origins_by_state
from benchmarks.record import Record, read_records
from benchmarks.recorded import read_noise, read_run, with_run
from benchmarks.rows import Rows, mean_where
from predictors.backtest import Backtest, backtest, forecast_at, rolling_origins
from predictors.base import Predictor
from predictors.conformal import Intervals, rolling_intervals
from predictors.floor import empirical_floor
from predictors.metrics import METRICS
from traces.load import LoadTrace


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Backtest one predictor on one run."""
    trace = read_run(config)
    predictor = Remembered(build_predictor(config))
    horizons = list(config.backtest.horizons)
    cutoffs = rolling_origins(trace, config.backtest.first, config.backtest.stride, max(horizons))
    result = backtest(predictor, trace, cutoffs, horizons)
    intervals = rolling_intervals(predictor, trace, cutoffs, horizons)
    noise = noise_floors(config, predictor, trace, cutoffs, horizons)
    rows, curves = Rows(config, method_name()), Curves(config)
    for state, chosen_OL in origins_by_state(config, trace, cutoffs).items():
        add_errors(rows, result, noise, state, chosen_OL)
        add_intervals(rows, intervals, state, chosen_OL)
    add_tuning(rows, predictor.predictor)
    rows.add("forecast_seconds", float(np.nanmedian(result.seconds)))
    add_curve(curves, result, method_name())
    return Measurement(rows.records, curves.series, trace.source.fingerprint())


class Remembered:
    """A predictor whose forecasts are made once: errors and intervals look at the same ones of one trace."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._made: dict[tuple[int, int], np.ndarray] = {}

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """The predictor's own; of one trace, a number of known steps stands for them."""
        key = len(past), horizon
        if key not in self._made:
            self._made[key] = self.predictor.forecast(past, horizon)
        return self._made[key]


def add_errors(rows: Rows, result: Backtest, noise: dict[str, np.ndarray], state: str, chosen_OL: np.ndarray) -> None:
    """Rows of every metric, horizon and layer, over the origins at which the layer was in `state`."""
    for metric, errors_ONL in result.errors.items():
        unknown = np.full_like(errors_ONL, np.nan)
        values_3ONL = np.stack([errors_ONL, result.floor.get(metric, unknown), noise.get(metric, unknown)])
        counted_ONL = chosen_OL[:, None] & np.isfinite(errors_ONL)
        means_3NL = mean_where(values_3ONL, counted_ONL, axis=1)
        for n, horizon in enumerate(result.horizons):
            count_L = counted_ONL[:, n].sum(0)
            columns = {"horizon": int(horizon), "state": state}
            for layer, count in enumerate(count_L):
                add_error(rows, metric, means_3NL[:, n, layer], count, layer=str(layer), **columns)
            of_layers = mean_where(means_3NL[:, n], count_L > 0, axis=1)
            add_error(rows, metric, of_layers, count_L.sum(), **columns)


def add_error(rows: Rows, metric: str, value_and_floors: np.ndarray, count: int, **columns: Any) -> None:
    """One row of an error with its two floors."""
    value, floor, floor_empirical = map(float, value_and_floors)
    rows.add(metric, value, floor=floor, floor_empirical=floor_empirical, count=int(count), **columns)


def add_intervals(rows: Rows, intervals: Intervals, state: str, chosen_OL: np.ndarray) -> None:
    """How often the horizon's mean load lay inside an interval that should hold it nine times in ten, and its width."""
    for n, horizon in enumerate(intervals.horizons):
        columns = {"horizon": int(horizon), "state": state}
        covered_OL, spread_OL = intervals.covered[:, n], intervals.spread[:, n]
        of_layers = mean_where(covered_OL, chosen_OL & np.isfinite(covered_OL), axis=0)
        rows.by_layer("interval_coverage", of_layers, **columns)
        bounded_OL = chosen_OL & np.isfinite(spread_OL)
        if bounded_OL.any():
            rows.add("interval_half_width", float(np.expm1(np.median(spread_OL[bounded_OL]))), **columns)


def noise_floors(
    config: DictConfig, predictor: Predictor, trace: LoadTrace, cutoffs: np.ndarray, horizons: list[int]
) -> dict[str, np.ndarray]:
    """Empirical floor (O, N, L) of each metric: measured at the step nearest to the origin, on the same series."""
    recorded = read_noise(config)
    if not recorded:
        return {}
    series = np.isfinite(forecast_at(predictor, trace, int(cutoffs[0]), 1).proportion[0])
    measured = {step: empirical_floor(noise.tokens, horizons, series) for step, noise in recorded.items()}
    nearest = [min(measured, key=lambda step: abs(step - cutoff)) for cutoff in cutoffs]
    return {metric: np.stack([measured[step][metric] for step in nearest]) for metric in METRICS}


def add_curve(curves: Curves, result: Backtest, method: str) -> None:
    """Error at the second horizon by origin: how a forecast improves while loads settle."""
    shown = min(1, len(result.horizons) - 1)
    error_O = np.nanmean(result.errors["relative_error_of_mean"][:, shown], axis=-1)
    panel = f"relative error of the horizon's mean, {result.horizons[shown]} iterations ahead"
    curves.add("error_over_training", panel, method, result.cutoffs, error_O)


def summary(records: Sequence[Record]) -> str:
    """The error of each horizon's mean load in each state, means over layers, beside what no forecast gets below."""
    lines = ["state      steps ahead  relative error of their mean  sampling alone"]
    for row in records:
        if row.metric == "relative_error_of_mean" and row.layer == "all":
            lines.append(f"{row.state:9}  {row.horizon:11}  {row.value:28.4f}  {row.floor:14.4f}")
    return "\n".join(lines)


@hydra.main(config_path="../conf", config_name="predict_loads", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_run(config)
        folder = run_cell(config, [config.setting, f"seed{config.seed}", method_name()], measure)
        print(summary(read_records(folder / "records.csv")))


if __name__ == "__main__":
    main()
