"""Window figures against slow references, and the detector on traces whose states are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictors.states import (
    detect_states,
    noise_dispersion,
    noise_variance,
    probe_drift,
    sensitivity,
    window_range,
    window_variance,
)
from traces.load import proportions

# a nano trace: 2,048 tokens a step, top-2 of 16 experts
NUM_STEPS, NUM_EXPERTS, PAIRS, WINDOW, ENTER = 1500, 16, 4096, 100, 0.02
# the first step at which a detector with these defaults can call anything stable
EARLIEST = 3 * WINDOW - 2


def shares(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(NUM_EXPERTS, 3.0))


def sampled(truth_SE: np.ndarray, seed: int, pairs: int = PAIRS) -> np.ndarray:
    """Counts (S, 1, E) of independent tokens."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(pairs, row) for row in truth_SE])[:, None]


def in_domains(truth_SE: np.ndarray, seed: int, times: float) -> np.ndarray:
    """The same, of batches that mix five domains: about `times` the variance of independent tokens."""
    rng = np.random.default_rng(seed)
    taste_DE = rng.normal(size=(5, NUM_EXPERTS))
    mixed_SE = (rng.dirichlet(np.full(5, 4.0), size=len(truth_SE)) - 0.2) @ taste_DE
    settled_E = truth_SE[-1]
    mixed_SE -= (mixed_SE @ settled_E)[:, None]
    multinomial = (settled_E * (1 - settled_E)).sum() / PAIRS
    size = np.sqrt((times - 1) * multinomial / (settled_E * mixed_SE).var(0).sum())
    tilted_SE = truth_SE * np.exp(size * mixed_SE)
    return sampled(tilted_SE / tilted_SE.sum(-1, keepdims=True), seed)


def constant(seed: int) -> np.ndarray:
    return np.tile(shares(seed), (NUM_STEPS, 1))


def relaxing(seed: int, decay_steps: float) -> tuple[np.ndarray, int]:
    """Exponential relaxation, and the step at which its change in a window's length falls to ENTER."""
    start, end = shares(seed), shares(seed + 100)
    way = np.abs(start - end).sum() / 2
    left_S = np.exp(-np.arange(NUM_STEPS) / decay_steps)
    settled = decay_steps * np.log(way * WINDOW / decay_steps / ENTER)
    return end + (start - end) * left_S[:, None], round(settled)


def stable_step(tokens: np.ndarray) -> int:
    return int(detect_states(proportions(tokens)).stable_step[0])


series = hnp.arrays(
    np.float64, st.tuples(st.integers(12, 40), st.integers(1, 2), st.integers(1, 3)), elements=st.floats(0, 1)
)


@settings(max_examples=60)
@given(series, st.integers(2, 12))
def test_window_figures_equal_the_obvious_loop(proportion, window):
    blocks = [proportion[i : i + window] for i in range(len(proportion) - window + 1)]
    noise = [(np.diff(block, axis=0) ** 2).mean(0) / 2 for block in blocks]
    np.testing.assert_allclose(window_variance(proportion, window), [b.var(0) for b in blocks], atol=1e-12)
    np.testing.assert_array_equal(window_range(proportion, window), [np.ptp(b, axis=0) for b in blocks])
    np.testing.assert_allclose(noise_variance(proportion, window), noise, atol=1e-12)


def test_figures_of_the_paper_at_its_size_need_little_memory():
    # 350M: 12 layers of 128 experts; windows of 100 copied out would take 6 GB
    proportion = np.random.default_rng(0).random((5000, 12, 128), dtype=np.float32)
    assert window_range(proportion, 100).shape == (4901, 12, 128)
    np.testing.assert_allclose(window_variance(proportion, 100)[4900], proportion[4900:].var(0), rtol=1e-3)


def test_a_constant_far_from_zero_has_no_variance():
    assert window_variance(np.full((50, 1, 1), 0.9), 10).max() < 1e-15


@pytest.mark.parametrize("seed", range(4))
def test_stationary_loads_are_stable_as_soon_as_can_be_said(seed):
    assert stable_step(sampled(constant(seed), seed)) == EARLIEST


@pytest.mark.parametrize(("window", "patience"), [(100, 1.0), (50, 2.0), (40, 0.33), (10, 0.01), (100, 99.0)])
def test_first_judged_is_where_loads_that_never_move_turn_stable(window, patience):
    states = detect_states(np.full((400, 2, 4), 0.25), window=window, patience=patience)
    expected = np.arange(400)[:, None] >= states.first_judged
    np.testing.assert_array_equal(states.stable, np.broadcast_to(expected, states.stable.shape))
    assert states.first_judged == pytest.approx((2 + patience) * window - 2, abs=1)


@pytest.mark.parametrize("decay_steps", [50, 100, 200])
@pytest.mark.parametrize("seed", range(3))
def test_relaxing_loads_are_stable_two_windows_after_they_settle(seed, decay_steps):
    truth, settled = relaxing(seed, decay_steps)
    assert settled + WINDOW <= stable_step(sampled(truth, seed)) <= settled + 2.5 * WINDOW


def test_steady_drift_is_never_stable():
    # 1.7 times the threshold in every window, all along the trace
    left_S = np.linspace(1, 0, NUM_STEPS)[:, None]
    start, end = np.eye(NUM_EXPERTS)[0] * 0.5, np.eye(NUM_EXPERTS)[1] * 0.5
    truth = left_S * start + (1 - left_S) * end + 0.5 / NUM_EXPERTS
    states = detect_states(proportions(sampled(truth, 0)))
    assert states.stable_step.tolist() == [-1]
    assert states.drift.mean() == pytest.approx(0.5 * WINDOW / NUM_STEPS, rel=0.1)


def test_a_change_of_regime_is_noticed_and_then_over():
    truth = np.concatenate([constant(0)[:700], constant(1)[700:]])
    states = detect_states(proportions(sampled(truth, 0)))
    stable = states.stable[:, 0]
    assert stable[EARLIEST:700].all()
    # noticed within half a window, over one window after both windows lie beyond it
    assert not stable[750:900].any()
    assert abs(int(states.stable_step[0]) - (700 + 3 * WINDOW)) <= WINDOW / 4


@pytest.mark.parametrize("times", [3, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_noisy_batches_do_not_look_like_drift(seed, times):
    tokens = in_domains(constant(seed), seed, times)
    assert noise_dispersion(tokens, WINDOW).mean() == pytest.approx(times, rel=0.15)
    assert stable_step(tokens) == EARLIEST


@pytest.mark.parametrize("seed", range(3))
def test_noisy_batches_do_not_hide_relaxation(seed):
    truth, settled = relaxing(seed, 100)
    assert settled + WINDOW / 2 <= stable_step(in_domains(truth, seed, 6)) <= settled + 3 * WINDOW


def test_drift_without_noise_is_exact():
    before, after = shares(0), shares(1)
    proportion = np.concatenate([np.tile(before, (10, 1)), np.tile(after, (10, 1))])[:, None]
    drift = detect_states(proportion, window=10).drift
    assert drift.shape == (1, 1)
    assert drift[0, 0] == pytest.approx(np.abs(before - after).sum() / 2)


def test_states_use_nothing_later():
    proportion = proportions(sampled(relaxing(0, 100)[0], 0))
    whole, early = detect_states(proportion), detect_states(proportion[:600])
    np.testing.assert_array_equal(early.stable, whole.stable[:600])
    np.testing.assert_allclose(early.drift, whole.drift[: len(early.drift)], atol=1e-9)


def test_steps_are_those_of_the_trace():
    proportion = proportions(sampled(constant(0)[:400], 0))
    states = detect_states(proportion, step=np.arange(400) + 5000)
    assert states.stable_step.tolist() == [5000 + EARLIEST]
    assert (states.steps[0], states.steps[-1]) == (5000 + 2 * WINDOW - 1, 5399)


def test_thresholds_keep_a_layer_between_them_as_it_was():
    # drift of 0.03 per window lies between enter and leave: it ends no stable state and begins none
    steady = np.stack([np.linspace(0.3, 0.3 + 0.03 * 4, 400), np.linspace(0.7, 0.7 - 0.03 * 4, 400)], axis=1)
    calm_first = np.concatenate([np.tile(steady[0], (400, 1)), steady])
    assert detect_states(calm_first[:, None]).stable_step.tolist() == [EARLIEST]
    assert detect_states(steady[:, None]).stable_step.tolist() == [-1]
    assert detect_states(calm_first[:, None], leave=0.025).stable_step.tolist() == [-1]


def test_sensitivity_tries_every_choice():
    proportion = np.repeat(proportions(sampled(relaxing(0, 100)[0], 0)), 2, axis=1)
    found = sensitivity(proportion, [50, 100], [0.01, 0.02, 0.05])
    assert found.shape == (2, 3, 2)
    np.testing.assert_array_equal(found[1, 1], detect_states(proportion).stable_step)
    assert found[1, 0, 0] > found[1, 1, 0] > found[1, 2, 0]


def test_noise_dispersion_is_one_for_independent_tokens_with_or_without_drift():
    for truth in (constant(0), relaxing(0, 200)[0]):
        assert noise_dispersion(sampled(truth, 0), WINDOW).mean() == pytest.approx(1.0, abs=0.05)
    assert np.isnan(noise_dispersion(np.zeros((10, 1, 4), int), 5)).all()


def test_probe_drift_is_the_share_that_moved_per_step():
    counts = np.array([[[6, 2, 0]], [[5, 3, 0]], [[3, 3, 2]]])
    np.testing.assert_allclose(probe_drift(counts, np.array([0, 5, 25])), [[0.125 / 5], [0.25 / 20]])
    with pytest.raises(ValueError, match=r"\[0, 5, 5\]"):
        probe_drift(counts, np.array([0, 5, 5]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"window": 26}, "2 windows of 26 steps need a longer trace than 50 steps"),
        ({"window": 1}, "at least 2 steps here, got 1"),
        ({"window": 10, "enter": 0.0}, "enter 0.0 and leave 0.0"),
        ({"window": 10, "enter": 0.1, "leave": 0.05}, "enter 0.1 and leave 0.05"),
        ({"window": 10, "patience": 0.0}, "got 0.0"),
    ],
)
def test_choices_without_meaning_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        detect_states(np.full((50, 1, 2), 0.5), **options)
