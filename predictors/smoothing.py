"""Exponential moving average of the load proportions: a window without an edge.

Ours, beside the paper's SW_Avg: at decay d it weighs the past like a sliding window of about (1 + d) / (1 -
d) steps (equal variance under independent noise), and no step leaves it abruptly.
"""

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import hold, recent_proportions


class ExponentialMovingAverage:
    """Weights decay**age, normalised to sum to 1 so that a short past is not biased towards 0; held."""

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Hold the weighted mean of the past."""
        recent = recent_proportions(past, horizon, last=self._memory())
        weight = self.decay ** np.arange(len(recent) - 1, -1, -1, dtype=float)
        level = weight / weight.sum() @ recent.reshape(len(recent), -1)
        return hold(level.reshape(recent.shape[1:]), horizon)

    def _memory(self) -> int:
        """Steps after which a weight is below 1e-16 of the newest and cannot change a double."""
        return 1 if self.decay == 0.0 else 1 + int(np.ceil(np.log(1e-16) / np.log(self.decay)))
