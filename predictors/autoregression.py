"""AR(p) on first differences of the load proportions, every series fitted in one batched solve.

Ours: the cheap stand-in for the paper's ARIMA(5,1,5) (see `arima.py`), which takes a thousand times as long.
It has no moving-average part and must be reported as AR, never as ARIMA.

The difference d_t = p_t - p_(t-1) is regressed on its last p values without a constant (a constant would be a
drift, wrong after a thousand steps). The least squares runs over the differences padded with zeros at both
ends, so that the normal equations are Toeplitz in the autocovariances (Yule-Walker): such a fit is always
stationary, where plain least squares can have a root outside the unit circle and explode over a long horizon.
Forecasts are put back on the simplex.
"""

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import hold, onto_simplex, recent_proportions


class Autoregression:
    """AR(`order`) on first differences; a past too short for the order gets the highest order it allows."""

    def __init__(self, order: int) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        self.order = order

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Fit on the whole past, iterate the one-step forecast, and put each layer back on the simplex."""
        history = recent_proportions(past, horizon)
        order = min(self.order, len(history) - 2)
        if order < 1:
            return hold(history[-1], horizon)
        difference = np.diff(history, axis=0).reshape(len(history) - 1, -1)
        change = iterate(difference, fit_coefficients(difference, order), horizon)
        return onto_simplex(history[-1] + np.cumsum(change, axis=0).reshape(horizon, *history.shape[1:]))


def fit_coefficients(series: Float[np.ndarray, "N B"], order: int) -> Float[np.ndarray, "B P"]:
    """Yule-Walker coefficients of B zero-mean series, newest lag first.

    A ridge of 1e-9 of the variance keeps the solve defined where series are collinear with their own past; a
    series that never changes gets coefficients of 0.
    """
    length = len(series)
    lags_PB = np.stack([np.einsum("nb,nb->b", series[lag:], series[: length - lag]) for lag in range(order + 1)])
    toeplitz = np.abs(np.arange(order)[:, None] - np.arange(order)[None])
    matrix_BPP = lags_PB.T[:, toeplitz]
    variance_B = np.where(lags_PB[0] > 0, lags_PB[0], 1.0)
    matrix_BPP = matrix_BPP / variance_B[:, None, None] + 1e-9 * np.eye(order)
    still_B = lags_PB[0] == 0
    matrix_BPP[still_B] = np.eye(order)
    return np.linalg.solve(matrix_BPP, (lags_PB[1:] / variance_B).T[..., None])[..., 0]


def iterate(
    series: Float[np.ndarray, "N B"], coefficients: Float[np.ndarray, "B P"], horizon: int
) -> Float[np.ndarray, "H B"]:
    """One-step forecasts fed back `horizon` times."""
    order = coefficients.shape[1]
    weight_PB = np.ascontiguousarray(coefficients.T[::-1])  # oldest lag first, like the rows they multiply
    extended = np.concatenate([series[-order:], np.empty((horizon, series.shape[1]))])
    for step in range(order, order + horizon):
        np.einsum("pb,pb->b", weight_PB, extended[step - order : step], out=extended[step])
    return extended[order:]
