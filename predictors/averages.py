"""Averages of the past as weights over time: of a window, exponential, and scale-free.

Every level that a forecast starts from is a weighted mean of past proportions. As weights, many of them at
many origins cost one matrix product (`levels`) instead of a loop over steps.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

Average = Callable[[int], Float[np.ndarray, " S"]]


def window_weights(num_steps: int, window: int) -> Float[np.ndarray, " S"]:
    """The last `window` of `num_steps` steps alike; all of them where there are fewer."""
    known = min(window, num_steps)
    return np.concatenate([np.zeros(num_steps - known), np.full(known, 1.0 / known)])


def decay_weights(num_steps: int, decay: float) -> Float[np.ndarray, " S"]:
    """decay**age, scaled to sum to 1."""
    weight = decay ** np.arange(num_steps - 1, -1, -1, dtype=float)
    return weight / weight.sum()


def scale_free_weights(num_steps: int, gain: float, max_gain: float) -> Float[np.ndarray, " S"]:
    """Weights of level_t = level + g_t (p_t - level), g_t = min(max_gain, gain / t), from level_1 = p_1.

    Unrolled: w_s = g_s prod_(r > s) (1 - g_r). The memory is a fixed share of the past, about t / gain steps:
    beyond the first steps the weight of step s goes like (s / t)^(gain - 1), whatever the unit of time.
    """
    gains = np.minimum(max_gain, gain / np.arange(1, num_steps + 1))
    gains[0] = 1.0
    kept_since = np.cumprod(np.concatenate([[1.0], 1.0 - gains[:0:-1]]))
    return gains * kept_since[::-1]


def levels(
    history: Float[np.ndarray, "S L E"], averages: Sequence[Average], times: Int[np.ndarray, " O"]
) -> Float[np.ndarray, "A O L E"]:
    """Each average of the first t steps, for each of `times`: nothing at or after step t has a weight there."""
    weight_AOS = np.zeros((len(averages), len(times), len(history)))
    for a, average in enumerate(averages):
        for o, known in enumerate(times.tolist()):
            weight_AOS[a, o, :known] = average(known)
    return np.tensordot(weight_AOS, history, axes=1)
