"""What each of many forecasts would have been worth on the past alone: forecasts replayed from past origins.

At step t only a forecast made at step t - h or before can be scored over h steps. Origins are taken from the
younger half of the past: older ones saw another kind of loads. A horizon above a quarter of the past is scored over
that quarter, so that origins are left; members look ahead by u / t alone, so the shorter horizon is a fair stand-in.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from predictors.base import onto_simplex
from predictors.members import Member, starts
from predictors.metrics import half_l1
from predictors.segments import running_total


def scored_horizon(num_steps: int, horizon: int) -> int:
    """Steps over which past forecasts are scored."""
    return min(horizon, max(num_steps // 4, 1))


def past_origins(num_steps: int, scored: int, num_origins: int) -> Int[np.ndarray, " O"]:
    """At most `num_origins` origins from the younger half, evenly spaced; none where nothing can be scored."""
    last = num_steps - scored
    if last < 1:
        return np.empty(0, dtype=int)
    first = min(max(num_steps // 2, 1), last)
    return np.unique(np.linspace(first, last, num_origins).astype(int))


def replayed_losses(
    history: Float[np.ndarray, "S L E"], members: Sequence[Member], horizon: int, num_origins: int
) -> Float[np.ndarray, "M L"]:
    """Total variation between forecast and realised mean load over the horizon, averaged over past origins.

    All members lose 0 where nothing can be scored yet.
    """
    scored = scored_horizon(len(history), horizon)
    origins = past_origins(len(history), scored, num_origins)
    if not len(origins):
        return np.zeros((len(members), history.shape[1]))
    total = running_total(history)
    actual_OLE = (total[origins + scored] - total[origins]) / scored
    ratio_OU = np.arange(1, scored + 1) / origins[:, None]
    losses = []
    for member, (level, direction) in zip(members, starts(history, members, origins), strict=True):
        reach_O = member.reach(ratio_OU).mean(1)
        forecast_OLE = onto_simplex(level + reach_O[:, None, None] * direction)
        losses.append(half_l1(forecast_OLE, actual_OLE))
    return np.stack(losses)
