"""Averages as weights over time, against the recursions that they unroll."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.averages import decay_weights, levels, scale_free_weights, window_weights
from predictors.scale_free import ScaleFreeAverage
from predictors.smoothing import ExponentialMovingAverage
from traces.load import proportions


def counts(num_steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, (num_steps, 2, 5))


def slow_scale_free(past: np.ndarray, gain: float, max_gain: float) -> np.ndarray:
    """The recursion, step by step."""
    history = proportions(past)
    level = history[0]
    for t in range(2, len(history) + 1):
        level = level + min(max_gain, gain / t) * (history[t - 1] - level)
    return level


@settings(max_examples=50)
@given(
    num_steps=st.integers(1, 80), gain=st.floats(0.01, 100.0), max_gain=st.floats(0.01, 1.0), seed=st.integers(0, 99)
)
def test_scale_free_equals_the_slow_recursion(num_steps, gain, max_gain, seed):
    past = counts(num_steps, seed)
    forecast = ScaleFreeAverage(gain, max_gain).forecast(past, 3)
    np.testing.assert_allclose(forecast[2], slow_scale_free(past, gain, max_gain), atol=1e-12)


def test_scale_free_has_the_mean_log_age_that_trends_rely_on():
    """The mean of log(t / s) is 1 / gain, at any length."""
    for num_steps in (2_000, 20_000):
        age = np.log(num_steps / np.arange(1, num_steps + 1))
        for gain in (3.0, 6.0, 12.0):
            weight = scale_free_weights(num_steps, gain, max_gain=0.3)
            assert weight @ age == pytest.approx(1 / gain, rel=0.01)


def test_scale_free_forgets_the_same_share_of_a_run_ten_times_as_long():
    younger_half = [scale_free_weights(n, 10.0, max_gain=0.3)[n // 2 :].sum() for n in (500, 5_000)]
    assert younger_half[0] == pytest.approx(younger_half[1], abs=1e-3)


@settings(max_examples=50)
@given(num_steps=st.integers(1, 60), window=st.integers(1, 80), decay=st.floats(0.0, 0.999), gain=st.floats(0.1, 50.0))
def test_weights_are_a_distribution_over_the_past(num_steps, window, decay, gain):
    averages = (
        window_weights(num_steps, window),
        decay_weights(num_steps, decay),
        scale_free_weights(num_steps, gain, 0.3),
    )
    for weight in averages:
        assert weight.shape == (num_steps,)
        assert (weight >= 0).all()
        assert weight.sum() == pytest.approx(1.0)


def test_levels_equal_each_average_of_each_prefix():
    history = proportions(counts(60, seed=1))
    averages = [partial(window_weights, window=7), partial(decay_weights, decay=0.9)]
    found = levels(history, averages, np.array([1, 5, 60]))
    for o, known in enumerate((1, 5, 60)):
        np.testing.assert_allclose(found[0, o], history[max(known - 7, 0) : known].mean(0), atol=1e-12)
        past = counts(60, seed=1)[:known]
        np.testing.assert_allclose(found[1, o], ExponentialMovingAverage(0.9).forecast(past, 1)[0], atol=1e-12)


@settings(max_examples=50)
@given(known=st.integers(1, 39), seed=st.integers(0, 99))
def test_a_level_knows_nothing_of_later_steps(known, seed):
    history = proportions(counts(40, seed))
    changed = history.copy()
    changed[known:] = np.nan
    averages = [partial(window_weights, window=9), partial(scale_free_weights, gain=5.0, max_gain=0.3)]
    before = levels(history[:known], averages, np.array([known]))
    np.testing.assert_allclose(levels(np.nan_to_num(changed, nan=9.0), averages, np.array([known])), before, atol=1e-12)


@pytest.mark.parametrize(("gain", "max_gain"), [(0.0, 0.3), (-1.0, 0.3), (float("nan"), 0.3), (5.0, 0.0), (5.0, 1.5)])
def test_a_gain_out_of_range_is_refused(gain, max_gain):
    with pytest.raises(ValueError, match="gain"):
        ScaleFreeAverage(gain, max_gain)
