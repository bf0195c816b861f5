"""Hedge: a pool of forecasts mixed by exponential weights of their delayed loss.

The rule of Freund and Schapire (1997, doi:10.1006/jcss.1997.1504), w_m proportional to exp(-eta * loss_m), with the
loss of the horizon's mean load as it was known so far (`replay.py`); ours are the pool (`members.py`) and the replay.
It keeps no state: a forecast replays the scoring from the past alone.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Integer

from predictors.averages import decay_weights, scale_free_weights, window_weights
from predictors.base import onto_simplex, recent_proportions
from predictors.members import MAX_GAIN, Member, held, returning, starts, trend
from predictors.replay import replayed_losses


class Hedge:
    """Mixture, per layer, of held averages, trends in log time and returns to uniform loads.

    The weights answer the horizon asked for and hold for all of its steps.

    Args:
        windows: steps of held sliding means.
        decays: of held exponential averages.
        gains: of held scale-free averages.
        dampings: of trends.
        powers: of returns to uniform loads.
        rate: of two members whose losses differ by 1 / rate of the pool's mean loss, one weighs e times the other.
        num_origins: past forecasts scored, at most.
    """

    def __init__(
        self,
        windows: Sequence[int] = (),
        decays: Sequence[float] = (),
        gains: Sequence[float] = (),
        dampings: Sequence[float] = (),
        powers: Sequence[float] = (),
        rate: float = 10.0,
        num_origins: int = 16,
    ) -> None:
        self.members: list[Member] = [
            *(held(partial(window_weights, window=window)) for window in windows),
            *(held(partial(decay_weights, decay=decay)) for decay in decays),
            *(held(partial(scale_free_weights, gain=gain, max_gain=MAX_GAIN)) for gain in gains),
            *map(trend, dampings),
            *map(returning, powers),
        ]
        if not self.members:
            raise ValueError("Hedge needs a pool: windows, decays, gains, dampings or powers")
        if rate < 0 or num_origins < 1:
            raise ValueError(f"rate must not be negative and num_origins at least 1, got {rate} and {num_origins}")
        self.rate = rate
        self.num_origins = num_origins

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Score the pool on the past, then mix its forecasts; every step is a mixture of points on the simplex."""
        history = recent_proportions(past, horizon)
        weight_ML = exponential_weights(replayed_losses(history, self.members, horizon, self.num_origins), self.rate)
        ratio_H = np.arange(1, horizon + 1) / len(history)
        mixture = np.zeros((horizon, *history.shape[1:]))
        now = starts(history, self.members, np.array([len(history)]))
        for member, weight_L, (level, direction) in zip(self.members, weight_ML, now, strict=True):
            reach_H = member.reach(ratio_H)
            # a held level needs no work at every step
            path = onto_simplex(level + reach_H[:, None, None] * direction) if reach_H.any() else level
            mixture += weight_L[:, None] * path
        return mixture


def exponential_weights(loss: Float[np.ndarray, "M L"], rate: float) -> Float[np.ndarray, "M L"]:
    """exp(-rate * loss / the pool's mean loss), normalised over members; alike where nobody lost anything."""
    mean_L = loss.mean(0)
    relative = np.divide(loss - loss.min(0), mean_L, out=np.zeros_like(loss), where=mean_L > 0)
    weight = np.exp(-rate * relative)
    return weight / weight.sum(0)
