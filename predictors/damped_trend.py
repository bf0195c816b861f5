"""Damped trend of log loads, kept as a warning: at a thousand steps a recent trend is worth less than nothing.

After Gardner and McKenzie (1985, doi:10.1287/mnsc.31.10.1237): the growth of the last step is expected to shrink by a
factor every step. Growth is read off the log ratio of two neighbouring windows. Sampling noise passes for growth, and
a trend in steps has no use for the age of the run, where `members.trend`, in log t, does.
"""

import numpy as np
from jaxtyping import Float, Integer

from predictors.base import onto_simplex, recent_proportions


class DampedTrend:
    """Mean of the last `window` steps times the damped growth since the window before.

    Args:
        window: steps of each window; half of a past that is shorter than two.
        damping: factor a step; growth adds up to damping / (1 - damping) steps' worth.
    """

    def __init__(self, window: int, damping: float) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 step, got {window}")
        if not 0.0 <= damping < 1.0:
            raise ValueError(f"damping must lie in [0, 1), got {damping}")
        self.window = window
        self.damping = damping

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Level times exp(growth), rescaled to the simplex."""
        history = recent_proportions(past, horizon, last=2 * self.window)
        window = max(len(history) // 2, 1)
        level_LE, before_LE = history[-window:].mean(0), history[:window].mean(0)
        # half a token: the log of an unused expert's load stays finite
        half_token = 0.5 / max(int(past[-2 * window :].sum(-1).max()) * window, 1)
        growth_LE = np.log((level_LE + half_token) / (before_LE + half_token)) / window
        steps_H = np.cumsum(self.damping ** np.arange(1, horizon + 1))
        return onto_simplex(level_LE * np.exp(steps_H[:, None, None] * growth_LE))
