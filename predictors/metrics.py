"""Errors of a forecast of load proportions, per layer.

Cong et al. (2024, arXiv:2404.16914) report the mean of an "error ratio" per MoE layer without a formula; at
128 experts it can only be relative. Three readings are therefore reported side by side, each to be set
against its sampling floor (`floor.py`): an absolute percentage depends on the batch size.

A layer that routes no token in a step has no proportions there: that step counts for none of them. A series
whose forecast is NaN was not forecast and is left out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

METRICS = ("relative_error", "relative_error_of_mean", "total_variation")


def errors_by_horizon(
    forecast: Float[np.ndarray, "H L E"], future: Integer[np.ndarray, "H L E"], horizons: Sequence[int]
) -> dict[str, Float[np.ndarray, "N L"]]:
    """Errors of a forecast's first h steps, for every h at once, by cumulative sums.

    relative_error: mean of |p_hat - p| / p over steps and experts with p > 0.
    relative_error_of_mean: |m_hat - m| / m of the means over the h steps, averaged over experts with m > 0.
    total_variation: half the L1 distance, averaged over steps; NaN for a layer forecast only in part.
    zero_share: share of the forecast (step, expert) cells that relative_error leaves out because p = 0.

    Raises:
        ValueError: a horizon is below 1 or beyond the forecast.
    """
    _check_horizons(horizons, len(forecast))
    actual = realised(future)
    gap = np.abs(forecast - actual)
    routed, known = ~np.isnan(actual), ~np.isnan(forecast)
    used = known & (actual > 0)
    ratio = np.divide(gap, actual, out=np.zeros_like(gap), where=used)
    steps = _first_sums(routed[..., 0], horizons)
    distance = np.where(routed[..., 0], gap.sum(-1) / 2, 0.0)
    predicted = _first_sums(np.where(routed, forecast, 0.0), horizons)
    observed = _first_sums(np.where(routed, actual, 0.0), horizons)
    return {
        "relative_error": _ratio(*(_first_sums(x.sum(-1), horizons) for x in (ratio, used))),
        "relative_error_of_mean": np.concatenate(
            [relative_deviation(predicted[n : n + 1], observed[n : n + 1])[None] for n in range(len(horizons))]
        ),
        "total_variation": _ratio(_first_sums(distance, horizons), steps),
        "zero_share": _ratio(*(_first_sums(x.sum(-1), horizons) for x in (known & (actual == 0), known & routed))),
    }


def realised(future: Integer[np.ndarray, "H L E"]) -> Float[np.ndarray, "H L E"]:
    """Proportions of the counts; NaN where a layer routed no token."""
    total = np.broadcast_to(future.sum(-1, keepdims=True), future.shape)
    return np.divide(future, total, out=np.full(future.shape, np.nan), where=total > 0)


def relative_deviation(
    forecast: Float[np.ndarray, "H L E"], actual: Float[np.ndarray, "H L E"]
) -> Float[np.ndarray, " L"]:
    """Mean of |forecast - actual| / actual over rows and experts with actual > 0 and a forecast."""
    used = (actual > 0) & ~np.isnan(forecast)
    gap = np.abs(forecast - actual)
    return _layer_mean(np.divide(gap, actual, out=np.zeros_like(gap), where=used), used)


def half_l1(forecast: Float[np.ndarray, "H L E"], actual: Float[np.ndarray, "H L E"]) -> Float[np.ndarray, " L"]:
    """Half the L1 distance over experts, averaged over rows that have an actual."""
    routed = ~np.isnan(actual[..., :1])
    return _layer_mean(np.abs(forecast - actual).sum(-1, keepdims=True) / 2, routed)


def _layer_mean(values: Float[np.ndarray, "H L X"], where: Bool[np.ndarray, "H L X"]) -> Float[np.ndarray, " L"]:
    """Mean over rows and last axis where told; NaN, and no warning, for a layer without any."""
    return _ratio(np.where(where, values, 0).sum((0, 2)), where.sum((0, 2)))


def _ratio(total: np.ndarray, count: np.ndarray) -> Float[np.ndarray, "..."]:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _first_sums(values: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """Sum of the first h rows, for each h."""
    return np.cumsum(values, axis=0)[np.asarray(horizons, dtype=int) - 1]


def _check_horizons(horizons: Sequence[int], longest: int) -> None:
    wrong = [h for h in horizons if not 1 <= h <= longest]
    if wrong:
        raise ValueError(f"horizons must lie between 1 and the forecast's {longest} steps, got {wrong}")
