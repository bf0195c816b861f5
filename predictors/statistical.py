"""statsforecast's univariate models on a sample of series (Garza et al., 2022, github.com/Nixtla/statsforecast).

They fit one series at a time, 0.1 s to several seconds each, so they run on a seeded sample; the rest is NaN, and a
comparison with others is one on the same sample (`sampled.OnSample`).
"""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import recent_proportions
from predictors.sampled import sample_series


class Statistical:
    """A model of statsforecast on a seeded sample of series; each share is clipped to [0, 1]: a sample has no simplex.

    Where no fit is found the series gets its last value, and a RuntimeWarning counts them.

    Args:
        model: class name in statsforecast.models.
        num_series: series to fit, spread over the layers.
        seed: of the sample; the same as in `OnSample` for a comparison in pairs.
        max_history: fit on the last so many steps only; None for all.
        settings: the class's keyword arguments.
    """

    def __init__(
        self,
        model: str,
        num_series: int = 8,
        seed: int = 0,
        max_history: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if max_history is not None and max_history < 1:
            raise ValueError(f"max_history must be at least 1 step, got {max_history}")
        self.model = model
        self.num_series = num_series
        self.seed = seed
        self.max_history = max_history
        self.settings = dict(settings or {})
        self.name = model

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Fit and forecast the sampled series one by one.

        Raises:
            ImportError: statsforecast is not installed.
            ValueError: it has no model of that name.
        """
        model = self._new_model()
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
                f"{self.name} found no fit for {num_failed} of {chosen.sum()} series of {len(history)} "
                "steps; their last value is held",
                RuntimeWarning,
                stacklevel=2,
            )
        return forecast

    def _new_model(self) -> Any:
        try:
            models = importlib.import_module("statsforecast.models")
        except ImportError as missing:
            raise ImportError(
                f'the {self.name} predictor needs statsforecast; install it with: pip install -e ".[forecast]"'
            ) from missing
        if not hasattr(models, self.model):
            raise ValueError(f"statsforecast.models has no {self.model}")
        return getattr(models, self.model)(**self.settings)


def _fit_and_forecast(model: Any, series: Float[np.ndarray, " S"], horizon: int) -> np.ndarray | None:
    """Forecast, or None where statsforecast gives up (it raises any of several types) or returns no finite numbers."""
    try:
        with np.errstate(all="ignore"):
            mean = model.forecast(series, horizon)["mean"]
    except (ValueError, RuntimeError, IndexError):
        return None
    return mean if np.isfinite(mean).all() else None
