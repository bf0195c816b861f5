"""SW_Avg, last value, history mean and the exponential moving average against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.base import Forecast, hold, onto_simplex
from predictors.smoothing import ExponentialMovingAverage
from predictors.windows import HistoryMean, LastValue, SlidingWindow
from traces.load import proportions


def counts(num_steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, (num_steps, 2, 5))


def slow_sw_avg(past: np.ndarray, window: int, horizon: int) -> np.ndarray:
    """The paper's recursion, word for word."""
    series = list(proportions(past))
    for _ in range(horizon):
        series.append(np.mean(series[-window:], axis=0))
    return np.stack(series[len(past) :])


@given(
    num_steps=st.integers(1, 30),
    window=st.integers(1, 40),
    horizon=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_sw_avg_equals_the_slow_recursion(num_steps, window, horizon, seed):
    past = counts(num_steps, seed)
    # a past shorter than the window is used whole: the window is then its length
    expected = slow_sw_avg(past, min(window, num_steps), horizon)
    np.testing.assert_allclose(SlidingWindow(window).forecast(past, horizon), expected, atol=1e-12)


def test_sw_avg_of_one_step_is_the_last_value():
    past = counts(20, seed=1)
    np.testing.assert_allclose(SlidingWindow(1).forecast(past, 9), LastValue().forecast(past, 9))


def test_sw_avg_keeps_an_unused_expert_at_zero():
    past = counts(300, seed=2)
    past[:, :, 0] = 0
    assert (SlidingWindow(100).forecast(past, 2000)[:, :, 0] == 0).all()


def test_history_mean_weighs_steps_alike_whatever_their_tokens():
    past = np.array([[[1, 3]], [[300, 100]]])
    np.testing.assert_allclose(HistoryMean().forecast(past, 2), np.full((2, 1, 2), 0.5))


@given(num_steps=st.integers(1, 50), decay=st.floats(0.0, 0.999), seed=st.integers(0, 99))
def test_ema_equals_the_weighted_mean(num_steps, decay, seed):
    past = counts(num_steps, seed)
    weight = np.array([decay**age for age in range(num_steps)])[::-1]
    expected = np.average(proportions(past), axis=0, weights=weight)
    np.testing.assert_allclose(ExponentialMovingAverage(decay).forecast(past, 3)[2], expected, atol=1e-12)


def test_ema_has_the_noise_of_the_window_it_names():
    """Decay .98 against a window of 99 steps, on independent noise."""
    past = np.random.default_rng(0).multinomial(1000, np.full(50, 0.02), size=(2000, 40))
    spread = [p.forecast(past, 1).std() for p in (ExponentialMovingAverage(0.98), SlidingWindow(99))]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_ema_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=str(decay)):
        ExponentialMovingAverage(decay)


def test_sw_avg_refuses_an_empty_window():
    with pytest.raises(ValueError, match="0"):
        SlidingWindow(0)


def test_onto_simplex_rescales_and_makes_nothing_uniform():
    fixed = onto_simplex(np.array([[[0.2, -0.1, 0.6], [-1.0, -2.0, 0.0]]]))
    np.testing.assert_allclose(fixed, [[[0.25, 0.0, 0.75], [1 / 3] * 3]])


def test_forecast_refuses_a_bound_of_another_shape():
    proportion = hold(np.full((2, 4), 0.25), 3)
    # TypeError where jaxtyping checks shapes first
    with pytest.raises((ValueError, TypeError), match="lower"):
        Forecast(cutoff=10, proportion=proportion, lower=proportion[:2])
    with pytest.raises(ValueError, match="-1"):
        Forecast(cutoff=-1, proportion=proportion)
