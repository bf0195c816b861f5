"""Rolling-origin evaluation: forecast from many cutoffs of one trace, and set each error beside its floor."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from predictors.base import Forecast, Predictor
from predictors.floor import multinomial_floor, realised_mean
from predictors.metrics import METRICS, errors_by_horizon
from traces.load import LoadTrace


@dataclass(frozen=True, eq=False)
class Backtest:
    """Errors of one predictor on one trace.

    Attributes:
        cutoffs: (O,) recorded steps known at each origin.
        horizons: (N,) recorded steps ahead.
        errors: metric -> (O, N, L): the three of `metrics.METRICS` and zero_share; NaN where the horizon runs
            past the end of the trace, or where no series of the layer was forecast.
        floor: metric -> (O, N, L): the multinomial floor of the same series, at the horizon's realised mean loads.
        seconds: (O,) wall-clock time of the forecast call alone.
    """

    cutoffs: Int[np.ndarray, " O"]
    horizons: Int[np.ndarray, " N"]
    errors: dict[str, Float[np.ndarray, "O N L"]]
    floor: dict[str, Float[np.ndarray, "O N L"]]
    seconds: Float[np.ndarray, " O"]


def rolling_origins(trace: LoadTrace, first: int, stride: int, horizon: int) -> Int[np.ndarray, " O"]:
    """Cutoffs first, first + stride, ... that leave at least `horizon` recorded steps to compare with.

    Raises:
        ValueError: no such cutoff, or first or stride below 1.
    """
    for name, value in (("first", first), ("stride", stride), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    recorded = len(trace.step)
    if first + horizon > recorded:
        raise ValueError(
            f"no origin: first {first} + horizon {horizon} exceeds the {recorded} recorded steps; shorten "
            "backtest.horizons or backtest.first"
        )
    return np.arange(first, recorded - horizon + 1, stride)


def forecast_at(predictor: Predictor, trace: LoadTrace, cutoff: int, horizon: int) -> Forecast:
    """What the predictor says when it is given a copy of the first `cutoff` recorded steps and nothing else.

    Raises:
        ValueError: the cutoff lies outside the trace, or the answer has the wrong shape.
    """
    if not 1 <= cutoff <= len(trace.step):
        raise ValueError(f"cutoff must lie between 1 and the {len(trace.step)} recorded steps, got {cutoff}")
    proportion = predictor.forecast(trace.tokens[:cutoff].copy(), horizon)
    expected = (horizon, trace.num_layers, trace.num_experts)
    if proportion.shape != expected:
        raise ValueError(f"{type(predictor).__name__} returned shape {proportion.shape}, (H, L, E) is {expected}")
    return Forecast(cutoff=cutoff, proportion=proportion)


def backtest(
    predictor: Predictor,
    trace: LoadTrace,
    cutoffs: Sequence[int] | Int[np.ndarray, " O"],
    horizons: Sequence[int] | Int[np.ndarray, " N"],
    num_draws: int = 64,
    seed: int = 0,
) -> Backtest:
    """Forecast once from each cutoff, at the largest horizon that fits; shorter horizons are its prefixes.

    A predictor that learns from other runs is fitted by the caller beforehand. `num_draws` and `seed` belong
    to the simulated floor, drawn anew at each cutoff and alike for every predictor.

    Raises:
        ValueError: no cutoff or horizon, or one outside the trace.
    """
    if len(cutoffs) == 0 or len(horizons) == 0 or min(horizons) < 1:
        raise ValueError(f"need cutoffs and horizons of at least 1, got {list(cutoffs)} and {list(horizons)}")
    names = (*METRICS, "zero_share")
    shape = (len(cutoffs), len(horizons), trace.num_layers)
    errors = {name: np.full(shape, np.nan) for name in names}
    floor = {name: np.full(shape, np.nan) for name in METRICS}
    seconds = np.full(len(cutoffs), np.nan)
    for origin, cutoff in enumerate(map(int, cutoffs)):
        fits = [n for n, horizon in enumerate(horizons) if cutoff + horizon <= len(trace.step)]
        if not fits:
            continue
        reachable = [int(horizons[n]) for n in fits]
        started = time.perf_counter()
        forecast = forecast_at(predictor, trace, cutoff, max(reachable))
        seconds[origin] = time.perf_counter() - started
        for name, values in _errors(forecast, trace, reachable).items():
            errors[name][origin, fits] = values
        for name, values in _floors(forecast, trace, reachable, num_draws, seed + cutoff).items():
            floor[name][origin, fits] = values
    return Backtest(np.asarray(cutoffs), np.asarray(horizons), errors, floor, seconds)


def _errors(forecast: Forecast, trace: LoadTrace, horizons: list[int]) -> dict[str, Float[np.ndarray, "N L"]]:
    future = trace.tokens[forecast.cutoff : forecast.cutoff + max(horizons)]
    return errors_by_horizon(forecast.proportion, future, horizons)


def _floors(
    forecast: Forecast, trace: LoadTrace, horizons: list[int], num_draws: int, seed: int
) -> dict[str, Float[np.ndarray, "N L"]]:
    """Multinomial floors of the forecast series, each horizon at its own realised mean."""
    series = ~np.isnan(forecast.proportion.sum(axis=0))  # NaN at any step
    source = trace.source
    floors = []
    for horizon in horizons:
        truth = realised_mean(trace.tokens[forecast.cutoff : forecast.cutoff + horizon])
        floors.append(
            multinomial_floor(truth, source.tokens_per_step, source.top_k, [horizon], num_draws, seed, series)
        )
    return {name: np.concatenate([floor[name] for floor in floors]) for name in METRICS}
