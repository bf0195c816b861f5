"""The sampling floor: the error of a perfect forecast.

Routing a finite batch is a random draw, so even the true distribution misses the realised proportions. At
256 x 2048 tokens, top-1 and uniform loads, the per-step relative error of a perfect forecast is 1.24 % for
128 experts and 0.43 % for 16; a mean of the last w steps misses by sqrt(1 + 1 / w) times as much (1.25 % at
w = 100, 1.30 % at w = 10). The 1.3 % that Cong et al. (2024, arXiv:2404.16914) report for 350M would be all
sampling, if their batch was this one (they do not say). An error is therefore read as a ratio to its floor.

`multinomial_floor` assumes that tokens are independent. Tokens of one text share a domain, so the real floor
is higher (3 to 12 times the variance on small CPU runs); `empirical_floor` measures it from batches routed by
fixed weights.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from predictors.metrics import half_l1, realised, relative_deviation

Series = Bool[np.ndarray, "L E"]


def multinomial_floor(
    proportion: Float[np.ndarray, "L E"],
    tokens: int,
    top_k: int,
    horizons: Sequence[int],
    num_draws: int = 64,
    seed: int = 0,
    series: Series | None = None,
) -> dict[str, Float[np.ndarray, "N L"]]:
    """Errors of the perfect forecast `proportion` when each of `tokens` independent tokens picks K experts.

    A token's K experts are distinct, so expert e is among them with probability K p_e and its count is
    Binomial(T, K p_e), divided by T K. (A share above 1 / K is impossible then; it is clipped to 1 / K, and
    the clipped value is the perfect forecast.) The mean over a horizon of H steps is Binomial(T H, K p_e) /
    (T H K). The per-step errors are the same for every horizon. Correlation between experts does not matter:
    every metric is a mean over single series.

    Args:
        proportion: true shares; each layer sums to 1. NaN: no floor for that series.
        tokens: T, tokens a step.
        top_k: K, experts a token.
        horizons: steps ahead.
        num_draws: simulated futures for each horizon.
        seed: of the simulation.
        series: which series were forecast (all when None); a partly forecast layer has no total variation.

    Raises:
        ValueError: tokens, top_k or num_draws below 1, or a share outside [0, 1].
    """
    _check(proportion, tokens, top_k, num_draws)
    rng = np.random.default_rng(seed)
    picked = np.clip(top_k * np.nan_to_num(proportion), 0.0, 1.0)
    perfect = _mask(np.where(np.isnan(proportion), np.nan, picked / top_k), series)

    def draw(steps: int) -> Float[np.ndarray, "D L E"]:
        trials = tokens * steps
        return rng.binomial(trials, picked, size=(num_draws, *picked.shape)) / (trials * top_k)

    forecast = np.repeat(perfect[None], num_draws, axis=0)
    futures = draw(1)
    return {
        "relative_error": _for_each(horizons, relative_deviation(forecast, futures)),
        "relative_error_of_mean": np.stack([relative_deviation(forecast, draw(h)) for h in horizons]),
        "total_variation": _for_each(horizons, half_l1(forecast, futures)),
    }


def empirical_floor(
    counts: Integer[np.ndarray, "R L E"], horizons: Sequence[int], series: Series | None = None
) -> dict[str, Float[np.ndarray, "N L"]]:
    """Errors of the perfect forecast, measured on R batches of a step's size routed through fixed weights.

    The forecast is the batches' own mean; it follows them, which shrinks deviations by sqrt((R - 1) / R),
    undone here. The horizon's mean is taken to deviate like one batch divided by sqrt(H), relative to the
    mean: that assumes independent batches, where a corpus read in order makes neighbours alike.

    Raises:
        ValueError: fewer than two batches, or a horizon below 1.
    """
    batches = len(counts)
    if batches < 2:
        raise ValueError(f"an empirical floor needs at least 2 batches, got {batches}")
    if min(horizons) < 1:
        raise ValueError(f"horizons must be at least 1 step, got {min(horizons)}")
    actual = realised(counts)
    centre = realised_mean(counts)
    forecast = np.repeat(_mask(centre, series)[None], batches, axis=0)
    undo = np.sqrt(batches / (batches - 1))
    # exchanged arguments: here the mean is what a long horizon realises, so it is the denominator
    around_mean = relative_deviation(np.where(np.isnan(forecast), np.nan, actual), forecast)
    return {
        "relative_error": _for_each(horizons, undo * relative_deviation(forecast, actual)),
        "relative_error_of_mean": undo * around_mean / np.sqrt(np.asarray(horizons, dtype=float))[:, None],
        "total_variation": _for_each(horizons, undo * half_l1(forecast, actual)),
    }


def realised_mean(future: Integer[np.ndarray, "H L E"]) -> Float[np.ndarray, "L E"]:
    """Mean proportions over the steps in which a layer routed tokens; NaN for a layer that never did."""
    actual = realised(future)
    steps = (~np.isnan(actual)).sum(0)
    return np.divide(np.nansum(actual, axis=0), steps, out=np.full(steps.shape, np.nan), where=steps > 0)


def _mask(proportion: Float[np.ndarray, "L E"], series: Series | None) -> Float[np.ndarray, "L E"]:
    if series is None:
        return proportion
    if series.shape != proportion.shape:
        raise ValueError(f"series has shape {series.shape}, the proportions have shape {proportion.shape}")
    return np.where(series, proportion, np.nan)


def _for_each(horizons: Sequence[int], error: Float[np.ndarray, " L"]) -> Float[np.ndarray, "N L"]:
    return np.repeat(error[None], len(horizons), axis=0)


def _check(proportion: Float[np.ndarray, "L E"], tokens: int, top_k: int, num_draws: int) -> None:
    for name, value in (("tokens", tokens), ("top_k", top_k), ("num_draws", num_draws)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    outside = proportion[(proportion < 0) | (proportion > 1)]
    if outside.size:
        raise ValueError(f"proportions must lie in [0, 1], got {outside[0]}")
