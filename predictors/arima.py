"""ARIMA(5,1,5), one model per expert, as the paper runs it (Cong et al., 2024, arXiv:2404.16914).

statsforecast's ARIMA, fitted by CSS-ML (conditional sum of squares, then maximum likelihood): with d >= 1 its
plain CSS silently forecasts 0. At 0.2 to 0.6 s a series and origin it runs on a seeded sample of series; the
rest is NaN, so compare it with others on the same sample (`sampled.OnSample`). The paper states neither
sample nor history length.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import recent_proportions
from predictors.sampled import sample_series


class Arima:
    """ARIMA of a seeded sample of series; each share is clipped to [0, 1], since a sample has no simplex.

    Where no fit is found (seen in up to half the series below 50 steps, about 1 in 30 at 200, none of 60 from
    1,000 on) the series gets ARIMA(0,1,0), its last value, and a RuntimeWarning counts them.

    Args:
        order: (p, d, q).
        num_series: series to fit, spread over the layers.
        seed: of the sample; the same as in `OnSample` for a comparison in pairs.
        max_history: fit on the last so many steps only; None for all.
    """

    def __init__(
        self,
        order: Sequence[int] = (5, 1, 5),
        num_series: int = 8,
        seed: int = 0,
        max_history: int | None = None,
    ) -> None:
        if len(order) != 3 or min(order) < 0:
            raise ValueError(f"order must be three non-negative integers (p, d, q), got {list(order)}")
        if max_history is not None and max_history < 1:
            raise ValueError(f"max_history must be at least 1 step, got {max_history}")
        p, d, q = order
        self.order = (p, d, q)
        self.num_series = num_series
        self.seed = seed
        self.max_history = max_history

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Fit and forecast the sampled series one by one."""
        model = _new_model(self.order)
        history = recent_proportions(past, horizon, last=self.max_history)
        chosen = sample_series(*past.shape[1:], num_series=self.num_series, seed=self.seed)
        forecast = np.full((horizon, *past.shape[1:]), np.nan)
        num_failed = 0
        for layer, expert in np.argwhere(chosen):
            series = np.ascontiguousarray(history[:, layer, expert])
            mean = _fit_and_forecast(model, series, horizon)
            num_failed += mean is None
            forecast[:, layer, expert] = series[-1] if mean is None else np.clip(mean, 0.0, 1.0)
        if num_failed:
            warnings.warn(
                f"ARIMA{self.order} found no fit for {num_failed} of {chosen.sum()} series of {len(history)} "
                "steps; their last value is held",
                RuntimeWarning,
                stacklevel=2,
            )
        return forecast


def _new_model(order: tuple[int, int, int]) -> Any:
    try:
        from statsforecast.models import ARIMA
    except ImportError as missing:
        raise ImportError(
            'the ARIMA predictor needs statsforecast; install it with: pip install -e ".[forecast]"'
        ) from missing
    return ARIMA(order=order, method="CSS-ML")


def _fit_and_forecast(model: Any, series: Float[np.ndarray, " S"], horizon: int) -> np.ndarray | None:
    """Forecast, or None where statsforecast gives up (it raises either type) or returns no finite numbers."""
    try:
        with np.errstate(all="ignore"):
            mean = model.forecast(series, horizon)["mean"]
    except (ValueError, RuntimeError):
        return None
    return mean if np.isfinite(mean).all() else None
