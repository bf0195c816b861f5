"""Intervals around a forecast of the horizon's mean load, from its own errors at earlier origins.

Split conformal prediction (Papadopoulos et al., 2002, doi:10.1007/3-540-36755-1_29) on the log ratio of forecast and
realised mean load, pooled over a layer's experts, with the online correction of adaptive conformal inference (Gibbs
and Candès, 2021, arXiv:2106.00170): a miss widens what follows, a hit narrows it, so that coverage comes out right
over many origins although errors change while loads settle. An error counts once its whole horizon was observed.
Pooled, because ten errors of one expert are too few: corrected, they left a quarter of the bounds infinite (seed-0 runs
of nano16, nano32 and nano16_unbalanced, 100 steps ahead), where a layer's left none.

A load of zero has no log ratio: half a token a step is added to every load, and taken off the bounds again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from predictors.base import Forecast, Predictor, recent_proportions
from predictors.segments import running_total
from traces.load import LoadTrace

Tokens = Integer[np.ndarray, "S L E"]


@dataclass(frozen=True)
class Rule:
    """How earlier errors become an interval.

    Attributes:
        coverage: nominal share of loads inside.
        rate: step of the online correction (Gibbs and Candès' gamma); 0 is plain split conformal.
        memory: newest origins whose errors are used.

    Raises:
        ValueError: coverage outside (0, 1), a negative rate, or no memory.
    """

    coverage: float = 0.9
    rate: float = 0.1
    memory: int = 10

    def __post_init__(self) -> None:
        if not 0.0 < self.coverage < 1.0 or self.rate < 0.0 or self.memory < 1:
            raise ValueError(f"an interval needs coverage in (0, 1), rate >= 0 and memory >= 1, got {self}")


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of one predictor's horizon means over the rolling origins of one trace.

    Attributes:
        cutoffs: (O,) recorded steps known at each origin.
        horizons: (N,) recorded steps ahead.
        spread: (O, N, L) half width of the log ratio; inf, which bounds nothing, where no error was known yet or the
            correction asks for more than any error seen.
        covered: (O, N, L) share of experts whose realised mean load lies inside; NaN where no error was known yet,
            where the horizon runs past the trace, and where nothing was forecast.
    """

    cutoffs: Int[np.ndarray, " O"]
    horizons: Int[np.ndarray, " N"]
    spread: Float[np.ndarray, "O N L"]
    covered: Float[np.ndarray, "O N L"]

    def coverage(self) -> Float[np.ndarray, " N"]:
        """Share of loads inside at each horizon, over origins and layers; NaN where there were none."""
        known = ~np.isnan(self.covered)
        total, count = np.where(known, self.covered, 0.0).sum((0, 2)), known.sum((0, 2))
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def rolling_intervals(
    predictor: Predictor,
    trace: LoadTrace,
    cutoffs: Sequence[int] | Int[np.ndarray, " O"],
    horizons: Sequence[int] | Int[np.ndarray, " N"],
    rule: Rule | None = None,
) -> Intervals:
    """Forecast from each cutoff in turn and bound every horizon's mean by the errors known at that cutoff.

    Raises:
        ValueError: no cutoff or horizon, a horizon below 1, or cutoffs that do not increase within the trace.
    """
    return _roll(predictor, trace.tokens, np.asarray(cutoffs), np.asarray(horizons), rule or Rule())


def with_interval(
    predictor: Predictor,
    past: Tokens,
    horizon: int,
    rule: Rule | None = None,
    num_origins: int = 20,
) -> Forecast:
    """The predictor's forecast after `past`, with bounds of the horizon's mean load laid around every step.

    The predictor forecasts again from `num_origins` cutoffs of the past, evenly spaced over the younger half of those
    whose horizon has passed. Without any the bounds are 0 and 1.
    """
    last = len(past) - horizon
    origins = np.linspace(last // 2, last, num_origins).astype(int)
    cutoffs = np.append(np.unique(origins[origins >= 1]), len(past))
    spread_L = _roll(predictor, past, cutoffs, np.array([horizon]), rule or Rule()).spread[-1, 0]
    proportion = predictor.forecast(past.copy(), horizon)
    factor_L1, half_token_L1 = np.exp(spread_L)[:, None], _half_token(past)[:, None]
    shifted = proportion + half_token_L1  # NaN, which clip keeps, where nothing was forecast
    lower, upper = (np.clip(x - half_token_L1, 0.0, 1.0) for x in (shifted / factor_L1, shifted * factor_L1))
    return Forecast(cutoff=len(past), proportion=proportion, lower=lower, upper=upper)


def _roll(predictor: Predictor, tokens: Tokens, cutoffs: np.ndarray, horizons: np.ndarray, rule: Rule) -> Intervals:
    _check(cutoffs, horizons, len(tokens))
    error_ONLE = _log_ratios(predictor, tokens, cutoffs, horizons)
    shape = error_ONLE.shape[:3]
    spread, covered = np.full(shape, np.inf), np.full(shape, np.nan)
    for n, horizon in enumerate(horizons):
        miss_L = np.full(shape[2], 1.0 - rule.coverage)
        num_answered = 0
        for origin, cutoff in enumerate(cutoffs):
            num_known = int(np.searchsorted(cutoffs, cutoff - horizon, side="right"))
            for missed_L in 1.0 - covered[num_answered:num_known, n]:
                miss_L += np.where(np.isnan(missed_L), 0.0, rule.rate * (1.0 - rule.coverage - missed_L))
            num_answered = num_known
            if num_known == 0:
                continue
            spread[origin, n] = _quantile(error_ONLE[max(num_known - rule.memory, 0) : num_known, n], 1.0 - miss_L)
            covered[origin, n] = _share_inside(error_ONLE[origin, n], spread[origin, n])
    return Intervals(cutoffs, horizons, spread, covered)


def _log_ratios(
    predictor: Predictor, tokens: Tokens, cutoffs: np.ndarray, horizons: np.ndarray
) -> Float[np.ndarray, "O N L E"]:
    """Absolute log of forecast over realised mean load; NaN where the horizon runs past the end."""
    error = np.full((len(cutoffs), len(horizons), *tokens.shape[1:]), np.nan)
    total = running_total(recent_proportions(tokens, 1))
    for origin, cutoff in enumerate(cutoffs):
        reachable = horizons[cutoff + horizons <= len(tokens)]
        if not len(reachable):
            continue
        forecast = running_total(predictor.forecast(tokens[:cutoff].copy(), int(reachable.max())))
        half_token = _half_token(tokens[:cutoff])[:, None]
        for n, horizon in enumerate(horizons):
            if cutoff + horizon <= len(tokens):
                actual = (total[cutoff + horizon] - total[cutoff]) / horizon
                error[origin, n] = np.abs(np.log((forecast[horizon] / horizon + half_token) / (actual + half_token)))
    return error


def _quantile(error_OLE: np.ndarray, level_L: np.ndarray) -> Float[np.ndarray, " L"]:
    """The ceil((n + 1) level)-th smallest of a layer's n errors: 0 below the first, inf beyond the last."""
    pooled_LN = np.sort(error_OLE.swapaxes(0, 1).reshape(len(level_L), -1), axis=1)  # NaN comes last
    count_L = (~np.isnan(pooled_LN)).sum(1)
    rank_L = np.ceil((count_L + 1) * np.minimum(level_L, 1.0)).astype(int)
    chosen_L = np.take_along_axis(pooled_LN, np.clip(rank_L - 1, 0, pooled_LN.shape[1] - 1)[:, None], axis=1)[:, 0]
    return np.where(rank_L < 1, 0.0, np.where(rank_L > count_L, np.inf, chosen_L))


def _share_inside(error_LE: np.ndarray, spread_L: np.ndarray) -> Float[np.ndarray, " L"]:
    known = ~np.isnan(error_LE)
    inside = (known & (error_LE <= spread_L[:, None])).sum(1)
    return np.divide(inside, known.sum(1), out=np.full(len(spread_L), np.nan), where=known.any(1))


def _half_token(tokens: Tokens) -> Float[np.ndarray, " L"]:
    """Half a routed token as a share of what each layer routes in a step."""
    return 0.5 / np.maximum(tokens.sum(-1).max(0), 1)


def _check(cutoffs: np.ndarray, horizons: np.ndarray, num_steps: int) -> None:
    if len(cutoffs) == 0 or len(horizons) == 0 or horizons.min() < 1:
        raise ValueError(f"need cutoffs and horizons of at least 1, got {cutoffs.tolist()} and {horizons.tolist()}")
    if cutoffs[0] < 1 or cutoffs[-1] > num_steps or np.any(np.diff(cutoffs) <= 0):
        raise ValueError(f"cutoffs must increase within 1 to {num_steps}, got {cutoffs.tolist()}")
