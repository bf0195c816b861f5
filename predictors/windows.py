"""SW_Avg and its two extremes (Cong et al., 2024, arXiv:2404.16914).

SW_Avg forecasts the next step as the mean of the last w proportions and feeds that forecast back as if it had
been observed, k times. The paper does not state its w. Last value is w = 1; the mean of the whole history is
the other end.
"""

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import hold, recent_proportions


class SlidingWindow:
    """Mean of the last `window` proportions, fed back recursively; a shorter past is used whole."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 step, got {window}")
        self.window = window

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Forecast by a running sum: one addition and one subtraction a step, whatever the window."""
        recent = recent_proportions(past, horizon, last=self.window)
        window = len(recent)
        series = np.concatenate([recent, np.empty((horizon, *recent.shape[1:]))])
        total = recent.sum(0)
        for step in range(window, window + horizon):
            np.divide(total, window, out=series[step])
            total += series[step]
            total -= series[step - window]
        return np.maximum(series[window:], 0.0)  # rounding of the running sum can pass below an exact 0


class LastValue:
    """The last observed proportions, held."""

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Hold the last step; noisy by design, the reference that every smoother must beat."""
        return hold(recent_proportions(past, horizon, last=1)[0], horizon)


class HistoryMean:
    """The mean proportions of the whole past, held."""

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Hold the mean of all steps; includes the transient state, so it lags where loads have moved."""
        return hold(recent_proportions(past, horizon).mean(0), horizon)
