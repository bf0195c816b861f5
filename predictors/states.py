"""The transient and the stable state of expert loads: the paper's two figures, and a detector
(Cong et al., 2024, arXiv:2404.16914).

The paper defines the states in words (irregular variation between successive iterations; then loads alike
in adjacent ones) and plots the variance of each load proportion in windows of 10 and 100 iterations and its
range at 100. It has no detector and no threshold: `detect_states` is ours, an effect size with hysteresis,
because tests for "has anything changed" fire for ever on slow drift.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from traces.load import proportions

# A batch's tokens share domains, so a few directions carry its noise, and the total variation between two
# window means scatters widely: without any drift it reaches 1.4-1.75 times its expectation in one of twenty.
NOISE_MARGIN = 1.5


@dataclass(frozen=True, eq=False)
class States:
    """Where each layer is transient or stable; W = S - 2 * window + 1.

    Attributes:
        drift: (W, L) share of a layer's tokens that changed expert from one window to the next, beyond noise.
        steps: (W,) last step of the second window.
        stable: (S, L) whether the layer is stable, as an observer at that step knows it: from nothing later,
            so a forecast's cutoff may be chosen by it. Rows before `first_judged` are False for want of data.
        stable_step: (L,) step from which `stable` holds to the end of the trace; -1 if it ends transient.
        first_judged: first row of `stable` at which a layer can be stable at all; may lie beyond the trace. An
            origin that knows `cutoff` steps is judged by row cutoff - 1.
    """

    drift: Float[np.ndarray, "W L"]
    steps: Int[np.ndarray, " W"]
    stable: Bool[np.ndarray, "S L"]
    stable_step: Int[np.ndarray, " L"]
    first_judged: int


def window_variance(proportion: Float[np.ndarray, "S L E"], window: int) -> Float[np.ndarray, "W L E"]:
    """Population variance in each window of `window` steps; row i is of steps i to i + window - 1."""
    _check_length(proportion.shape[0], window, least=1)
    return _by_layer(_variance, proportion, window)


def window_range(proportion: Float[np.ndarray, "S L E"], window: int) -> Float[np.ndarray, "W L E"]:
    """Largest minus smallest in each window of `window` steps; row i is of steps i to i + window - 1."""
    _check_length(proportion.shape[0], window, least=1)
    return _by_layer(
        lambda layer_SE, size: _extreme(np.maximum, layer_SE, size) - _extreme(np.minimum, layer_SE, size),
        proportion,
        window,
    )


def noise_variance(proportion: Float[np.ndarray, "S L E"], window: int) -> Float[np.ndarray, "W L E"]:
    """Variance of one step's sampling noise in each window: half the mean square of successive differences.

    Von Neumann's estimator (1941). Drift enters it with the square of one step's change instead of the square
    of the whole way, and noise may be of any size, so batches noisier than multinomial sampling are covered.
    It assumes that steps draw their batches independently.
    """
    _check_length(proportion.shape[0], window, least=2)
    return _by_layer(_noise, proportion, window)


def noise_dispersion(tokens: Integer[np.ndarray, "S L E"], window: int) -> Float[np.ndarray, "W L"]:
    """`noise_variance` over what multinomial sampling explains, p (1 - p) / N, both summed over E.

    N is the number of pairs routed in a step. 1 says that loads vary no more from step to step than sampling
    makes them; batches that differ in kind raise it, drift does not. Top-K without replacement lowers it to
    (1 - K/E) / (1 - 1/E) at equal loads. NaN where a layer routed nothing.
    """
    routed_SL = tokens.sum(-1)
    one_draw_SL = 1.0 - (proportions(tokens) ** 2).sum(-1)
    per_step_SL = np.divide(one_draw_SL, routed_SL, out=np.full(routed_SL.shape, np.nan), where=routed_SL > 0)
    explained_WL = np.lib.stride_tricks.sliding_window_view(per_step_SL, window, axis=0).mean(-1)
    return noise_variance(proportions(tokens), window).sum(-1) / explained_WL


def probe_drift(counts: Integer[np.ndarray, "S L E"], step: Int[np.ndarray, " S"]) -> Float[np.ndarray, "S-1 L"]:
    """Router drift without sampling noise: total variation between successive recordings, per training step.

    Args:
        counts: loads of one fixed probe batch, routed at each recording.
        step: training step of each recording, strictly increasing.
    """
    if np.any(np.diff(step) <= 0):
        raise ValueError(f"probe steps must increase strictly, got {step.tolist()}")
    moved = np.abs(np.diff(proportions(counts), axis=0)).sum(-1) / 2.0
    return moved / np.diff(step)[:, None]


def detect_states(
    proportion: Float[np.ndarray, "S L E"],
    *,
    window: int = 100,
    enter: float = 0.02,
    leave: float | None = None,
    patience: float = 1.0,
    step: Int[np.ndarray, " S"] | None = None,
) -> States:
    """Call each layer transient or stable at every step, from that step and earlier ones.

    A layer becomes stable when its drift has been at most `enter` for `patience` windows, and transient again
    when its drift exceeds `leave`. Drift is the total variation between the means of the last window and of
    the one before, corrected for noise. So a layer that settles is called stable one window (the means' lag)
    plus `patience` windows later.

    Before row (2 + patience) * window - 2 nothing can be called stable yet: there every layer counts as
    transient, however calm it is. `States.first_judged` is that row, for callers who leave such origins out.

    Args:
        proportion: load proportions of successive steps.
        window: steps a window; the paper's longer one.
        enter: share of a layer's tokens per window at or below which a layer counts as calm.
        leave: share above which a stable layer turns transient; 2 * enter by default.
        patience: windows for which a layer must have been calm.
        step: number of each recorded step; 0, 1, ... by default.

    Raises:
        ValueError: the trace is shorter than two windows, or a threshold has no meaning.
    """
    num_steps = proportion.shape[0]
    _check_length(num_steps, window, least=2, windows=2)
    leave = 2 * enter if leave is None else leave
    if not 0 < enter <= leave:
        raise ValueError(f"thresholds must hold 0 < enter <= leave, got enter {enter} and leave {leave}")
    if patience <= 0:
        raise ValueError(f"patience must be positive (windows), got {patience}")
    step = np.arange(num_steps) if step is None else step
    drift = _drift(proportion, window)
    first, patience_steps = 2 * window - 1, max(1, round(patience * window))
    stable = np.zeros(proportion.shape[:2], bool)
    stable[first:] = _hysteresis(drift, enter, leave, patience_steps)
    return States(drift, step[first:], stable, _stable_step(stable, step), first + patience_steps - 1)


def sensitivity(
    proportion: Float[np.ndarray, "S L E"], windows: Sequence[int], thresholds: Sequence[float]
) -> Int[np.ndarray, "windows thresholds L"]:
    """`stable_step` for every window and every `enter`: how much the answer owes to the choice."""
    return np.array(
        [
            [detect_states(proportion, window=window, enter=enter).stable_step for enter in thresholds]
            for window in windows
        ]
    )


def _drift(proportion: np.ndarray, window: int) -> Float[np.ndarray, "W L"]:
    return np.stack([_layer_drift(layer_SE, window) for layer_SE in proportion.swapaxes(0, 1)], axis=1)


def _layer_drift(layer_SE: np.ndarray, window: int) -> Float[np.ndarray, " W"]:
    mean_WE = _mean(layer_SE, window)
    moved = np.abs(mean_WE[window:] - mean_WE[:-window]).sum(-1) / 2.0
    noise_WE = _noise(layer_SE, window)
    # the mean of |N(0, s)| is s sqrt(2 / pi), and s^2 that of two independent window means
    spread_WE = np.sqrt((noise_WE[window:] + noise_WE[:-window]) / window)
    expected = np.sqrt(2.0 / np.pi) * spread_WE.sum(-1) / 2.0
    # squares, since |drift + noise| grows like their root sum of squares: unbiased where drift exceeds noise
    return np.sqrt(np.maximum(moved**2 - (NOISE_MARGIN * expected) ** 2, 0.0))


def _hysteresis(drift: np.ndarray, enter: float, leave: float, patience_steps: int) -> Bool[np.ndarray, "W L"]:
    calm_steps = np.zeros(drift.shape[1], int)
    stable = np.zeros(drift.shape, bool)
    was_stable = stable[0]
    for row, now in enumerate(drift):
        calm_steps = np.where(now <= enter, calm_steps + 1, 0)
        stable[row] = was_stable = (calm_steps >= patience_steps) | (was_stable & (now <= leave))
    return stable


def _stable_step(stable: np.ndarray, step: np.ndarray) -> Int[np.ndarray, " L"]:
    transient_from_end = np.argmax(~stable[::-1], axis=0)
    # no layer is stable at step 0 (two windows come first), so argmax always finds a transient step
    return np.where(transient_from_end == 0, -1, step[-np.maximum(transient_from_end, 1)])


def _by_layer(
    function: Callable[[np.ndarray, int], np.ndarray], proportion: np.ndarray, window: int
) -> Float[np.ndarray, "W L E"]:
    # layer by layer, so that the temporary arrays are a layer's and not the trace's
    return np.stack([function(layer_SE, window) for layer_SE in proportion.swapaxes(0, 1)], axis=1)


def _mean(series: np.ndarray, window: int) -> np.ndarray:
    total = np.concatenate([np.zeros((1, *series.shape[1:])), np.cumsum(series, axis=0, dtype=np.float64)])
    return (total[window:] - total[:-window]) / window


def _variance(layer_SE: np.ndarray, window: int) -> np.ndarray:
    # centring keeps the difference of the two terms from cancelling
    centred = layer_SE - layer_SE.mean(0, dtype=np.float64)
    return np.maximum(_mean(centred**2, window) - _mean(centred, window) ** 2, 0.0)


def _noise(layer_SE: np.ndarray, window: int) -> np.ndarray:
    squares = np.diff(layer_SE.astype(np.float64), axis=0) ** 2
    # cumulative sums leave a rounding error of either sign where a series is constant
    return np.maximum(_mean(squares, window - 1), 0.0) / 2.0


def _extreme(pick: np.ufunc, layer_SE: np.ndarray, window: int) -> np.ndarray:
    span, best = 1, layer_SE
    while 2 * span <= window:
        best, span = pick(best[:-span], best[span:]), 2 * span
    # two spans that overlap cover a window that is no power of two
    rest = window - span
    return pick(best[: len(best) - rest], best[rest:])


def _check_length(num_steps: int, window: int, *, least: int, windows: int = 1) -> None:
    if window < least:
        raise ValueError(f"a window needs at least {least} steps here, got {window}")
    if num_steps < windows * window:
        raise ValueError(f"{windows} windows of {window} steps need a longer trace than {num_steps} steps")
