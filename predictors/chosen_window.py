"""A sliding mean whose window is chosen by backtest: the one that would have foretold the horizon's mean best.

Ours. The paper's SW_Avg leaves its window open (Cong et al., 2024, arXiv:2404.16914). Here every window of a grid is
replayed from past origins (`replay.py`); the likelihood of the next step is no substitute, see `local_level.py`.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Integer

from predictors.averages import levels, window_weights
from predictors.base import hold, recent_proportions
from predictors.members import held
from predictors.replay import replayed_losses


class BacktestedWindow:
    """Per layer, the mean over the window with the least total variation on past origins; held."""

    def __init__(self, windows: Sequence[int], num_origins: int = 16) -> None:
        if len(windows) == 0 or min(windows) < 1:
            raise ValueError(f"windows must be steps of at least 1, got {list(windows)}")
        if num_origins < 1:
            raise ValueError(f"num_origins must be at least 1, got {num_origins}")
        self.averages = [partial(window_weights, window=window) for window in windows]
        self.num_origins = num_origins

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Choose on the past, then hold; while nothing can be scored the first window is taken."""
        history = recent_proportions(past, horizon)
        loss_WL = replayed_losses(history, [held(a) for a in self.averages], horizon, self.num_origins)
        level_WLE = levels(history, self.averages, np.array([len(history)]))[:, 0]
        return hold(level_WLE[loss_WL.argmin(0), np.arange(history.shape[1])], horizon)
