"""Scale-free exponential moving average: its gain falls as one over the age of the run.

Ours. Loads move fast at the start of a training run and ever more slowly later, so a fixed window is too long
for the one and too short for the other. With the gain c / t the memory stays the same share of the run.
"""

import numpy as np
from jaxtyping import Float, Integer

from predictors.averages import scale_free_weights
from predictors.base import hold, recent_proportions


class ScaleFreeAverage:
    """level_t = level + g_t (p_t - level), g_t = min(`max_gain`, `gain` / t), t = recorded steps so far; held.

    The past must begin where the run begins: t is the number of its steps.
    """

    def __init__(self, gain: float, max_gain: float = 0.3) -> None:
        if not gain > 0.0:
            raise ValueError(f"gain must be positive, got {gain}")
        if not 0.0 < max_gain <= 1.0:
            raise ValueError(f"max_gain must lie in (0, 1], got {max_gain}")
        self.gain = gain
        self.max_gain = max_gain

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Hold the weighted mean of the past, by its weights in closed form."""
        history = recent_proportions(past, horizon)
        weight = scale_free_weights(len(history), self.gain, self.max_gain)
        return hold(np.tensordot(weight, history, axes=1), horizon)
