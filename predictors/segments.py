"""A run cut into what the LSTM reads and answers: bins of the past, segments of the future (numpy only).

Everything is read off the running total of proportions, so that a mean over any stretch costs one
subtraction.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

KNOTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def running_total(proportion: Float[np.ndarray, "S L E"]) -> Float[np.ndarray, "Z L E"]:
    """Row s is the sum of the first s steps; Z = S + 1."""
    return np.concatenate([np.zeros((1, *proportion.shape[1:])), np.cumsum(proportion, axis=0)])


def past_bins(
    total: Float[np.ndarray, "Z L E"], origins: Int[np.ndarray, " B"], num_bins: int, bin_steps: int
) -> Float[np.ndarray, "B N L E"]:
    """Means of the bins before each origin, oldest first; those before the run repeat its first one."""
    edge_BN = np.maximum(origins[:, None] - bin_steps * np.arange(num_bins, -1, -1), 0)
    width_BN = np.diff(edge_BN, axis=1)
    first_B = np.argmax(width_BN > 0, axis=1)
    mean = np.diff(total[edge_BN], axis=1) / np.maximum(width_BN, 1)[..., None, None]
    source_BN = np.maximum(np.arange(num_bins)[None], first_B[:, None])
    return mean[np.arange(len(origins))[:, None], source_BN]


def future_segments(
    total: Float[np.ndarray, "Z L E"], origins: Int[np.ndarray, " B"], knots: Sequence[int], end: int
) -> Float[np.ndarray, "B M L E"]:
    """Mean of each segment between knots after each origin; NaN for a segment that passes step `end`."""
    edge_BM = origins[:, None] + np.array([0, *knots])
    inside_BM = edge_BM[:, 1:] <= end
    mean = np.diff(total[np.minimum(edge_BM, len(total) - 1)], axis=1) / np.diff([0, *knots])[:, None, None]
    return np.where(inside_BM[..., None, None], mean, np.nan)


def join(segment_mean: Float[np.ndarray, "M L E"], knots: Sequence[int], horizon: int) -> Float[np.ndarray, "H L E"]:
    """Straight lines between segment centres, held before the first and after the last."""
    edge = np.array([0, *knots])
    centre = (edge[:-1] + 1 + edge[1:]) / 2  # step 1 is the first after the origin
    position = np.interp(np.arange(1, horizon + 1), centre, np.arange(len(centre)))
    left = np.minimum(position.astype(int), max(len(centre) - 2, 0))
    share = (position - left)[:, None, None]
    right = np.minimum(left + 1, len(centre) - 1)
    return (1 - share) * segment_mean[left] + share * segment_mean[right]


def usable_knots(longest_run: int) -> tuple[int, ...]:
    """Knots up to half of the longest training run, so that every segment has windows to learn from."""
    return tuple(knot for knot in KNOTS if knot <= max(longest_run // 2, 1))
