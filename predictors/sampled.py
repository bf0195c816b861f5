"""A seeded sample of series, for predictors too slow to run on all of them.

ARIMA is fitted series by series, so it is run on a few. Another predictor is compared with it in pairs only
on the same few: `OnSample` masks the rest.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer

from predictors.base import Predictor, TrainablePredictor


def sample_series(num_layers: int, num_experts: int, num_series: int, seed: int) -> Bool[np.ndarray, "L E"]:
    """Choose series spread over the layers: layers evenly spaced in depth, experts at random within a layer.

    Raises:
        ValueError: `num_series` is below 1. More than there are means all of them.
    """
    if num_series < 1:
        raise ValueError(f"num_series must be at least 1, got {num_series}")
    rng = np.random.default_rng(seed)
    wanted = min(num_series, num_layers * num_experts)
    per_layer = np.full(num_layers, wanted // num_layers)
    per_layer[spread(num_layers, wanted % num_layers)] += 1
    chosen = np.zeros((num_layers, num_experts), dtype=bool)
    for layer, count in enumerate(per_layer):
        chosen[layer, rng.choice(num_experts, size=count, replace=False)] = True
    return chosen


def spread(num_layers: int, num_chosen: int) -> Integer[np.ndarray, " M"]:
    """Distinct layer indices, evenly spaced."""
    return ((np.arange(num_chosen) + 0.5) * num_layers / max(num_chosen, 1)).astype(int)


class OnSample:
    """Any predictor, with all but a seeded sample of series masked by NaN; the sample equals `Arima`'s."""

    def __init__(self, predictor: Predictor, num_series: int, seed: int) -> None:
        self.predictor = predictor
        self.num_series = num_series
        self.seed = seed
        if isinstance(predictor, TrainablePredictor):
            self.fit = predictor.fit  # only then: callers take a `fit` to mean that other runs are needed

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """The wrapped predictor's forecast of the sampled series, from the past of all of them."""
        chosen = sample_series(*past.shape[1:], num_series=self.num_series, seed=self.seed)
        return np.where(chosen, self.predictor.forecast(past, horizon), np.nan)
