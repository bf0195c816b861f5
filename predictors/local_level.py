"""Local level tuned by likelihood, kept as a warning: what foretells the next step best does not foretell far.

The local level model, p_t = level_t + noise, level a random walk, forecasts by an exponential average whose gain is
the Kalman filter's in steady state. In differences it is a moving average of order 1, d_t = e_t - (1 - gain) e_(t-1),
so its likelihood is a function of the gain alone (the innovations' variance profiled out), here in Whittle's form
(1953): one Fourier transform for all series, then a grid.

It loses against a plain window: batches that share text are alike for a few steps, the likelihood takes that for
movement of the level and chooses a gain far too large (conf/predictor/local_level.yaml has the numbers).
"""

from functools import partial

import numpy as np
from jaxtyping import Float, Integer

from predictors.averages import decay_weights, levels
from predictors.base import hold, onto_simplex, recent_proportions

SMALLEST = np.finfo(float).tiny


class LocalLevel:
    """Each series' exponential average at its own likeliest gain, held; the layer is put back on the simplex.

    Args:
        num_gains: grid of gains, geometric from `smallest_gain` to 1.
        smallest_gain: the longest memory is about 2 / smallest_gain steps.
    """

    def __init__(self, num_gains: int = 25, smallest_gain: float = 0.001) -> None:
        if num_gains < 1 or not 0.0 < smallest_gain <= 1.0:
            raise ValueError(f"need at least 1 gain and the smallest in (0, 1], got {num_gains} and {smallest_gain}")
        self.gains = np.geomspace(smallest_gain, 1.0, num_gains)

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Choose every series' gain on the whole past, then hold its level."""
        history = recent_proportions(past, horizon)
        if len(history) < 3:
            return hold(history.mean(0), horizon)
        chosen = likeliest(np.diff(history, axis=0).reshape(len(history) - 1, -1), self.gains)
        averages = [partial(decay_weights, decay=1.0 - gain) for gain in self.gains]
        level_GLE = levels(history, averages, np.array([len(history)]))[:, 0]
        level_LE = np.take_along_axis(level_GLE, chosen.reshape(1, *history.shape[1:]), axis=0)[0]
        return hold(onto_simplex(level_LE[None])[0], horizon)


def likeliest(difference: Float[np.ndarray, "N B"], gains: Float[np.ndarray, " G"]) -> Integer[np.ndarray, " B"]:
    """Index of the gain with the highest Whittle likelihood for each of B series of differences, N >= 2."""
    power_WB = np.abs(np.fft.rfft(difference, axis=0)[1:]) ** 2 / len(difference)
    frequency_W = 2 * np.pi * np.fft.rfftfreq(len(difference))[1:]
    theta_G1 = 1.0 - gains[:, None]
    shape_GW = 1.0 - 2.0 * theta_G1 * np.cos(frequency_W) + theta_G1**2
    variance_GB = (1.0 / shape_GW) @ power_WB / len(frequency_W)
    return np.argmin(np.log(np.maximum(variance_GB, SMALLEST)) + np.log(shape_GW).mean(1, keepdims=True), axis=0)
