"""The forecasts that `Hedge` mixes: a level, and where it goes from there by a clock without a unit.

Ours. A member starts from averages of the past and moves along a direction, by an amount that depends on u / t
alone, u steps ahead over t steps known: it means the same at any age and length of a run.

    forecast(t + u) = level + reach(u / t) * direction, put on the simplex

- `held` stays (loads are close to a martingale, so this is the guess to beat);
- `trend` goes on along log t: without a balance loss popularity keeps drifting, ever more slowly;
- `returning` goes towards uniform loads as a power of t: a balance loss pulls them there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from predictors.averages import Average, levels, scale_free_weights

FAST_GAIN, SLOW_GAIN, STEADY_GAIN, MAX_GAIN = 6.0, 3.0, 10.0, 0.3
FAST, SLOW, STEADY = (
    partial(scale_free_weights, gain=gain, max_gain=MAX_GAIN) for gain in (FAST_GAIN, SLOW_GAIN, STEADY_GAIN)
)

Loads = Float[np.ndarray, "B L E"]


@dataclass(frozen=True)
class Member:
    """One forecast of a pool, from B origins at once.

    Attributes:
        averages: of the past, which it starts from.
        start: their values (A, B, L, E) -> level and direction, both (B, L, E).
        reach: u / t -> how far along the direction.
    """

    averages: tuple[Average, ...]
    start: Callable[[np.ndarray], tuple[Loads, Loads]]
    reach: Callable[[np.ndarray], np.ndarray]


def held(average: Average) -> Member:
    """An average, held."""
    return Member((average,), lambda level: (level[0], np.zeros_like(level[0])), np.zeros_like)


def trend(damping: float) -> Member:
    """A line in log t through two scale-free averages; its slope beyond them is multiplied by `damping`.

    The average of gain c weighs step s like (s / t)^(c - 1), so log(t / s) is 1 / c in its mean: it tells the
    load of log time log t - 1 / c.
    """
    return Member(
        (FAST, SLOW),
        lambda level: (level[0], (level[0] - level[1]) / (1 / SLOW_GAIN - 1 / FAST_GAIN)),
        lambda ratio: damping * (1 / FAST_GAIN + np.log1p(ratio)),
    )


def returning(power: float) -> Member:
    """A scale-free average whose log loads come nearer to one another like (1 + u / t)^-power, to first order.

    The direction is the slope of p^k / sum(p^k) as k falls below 1. Near uniform loads it is the straight way there,
    1 / E - p; far from them an expert without tokens, which nothing pulls back, stays without.
    """
    return Member(
        (STEADY,),
        lambda level: (level[0], _flattening(level[0])),
        lambda ratio: 1.0 - (1.0 + ratio) ** -power,
    )


def _flattening(load: Loads) -> Loads:
    log_load = np.log(load, out=np.zeros_like(load), where=load > 0)
    return load * ((load * log_load).sum(-1, keepdims=True) - log_load)


def starts(
    history: Float[np.ndarray, "S L E"], members: Sequence[Member], times: Int[np.ndarray, " B"]
) -> list[tuple[Loads, Loads]]:
    """Level and direction of every member after the first t steps, for each of `times`."""
    distinct = list(dict.fromkeys(average for member in members for average in member.averages))
    level_ABLE = levels(history, distinct, times)
    return [member.start(level_ABLE[[distinct.index(a) for a in member.averages]]) for member in members]
