"""The baselines kept as warnings do what they say, so that their loss says something."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.averages import decay_weights, levels
from predictors.damped_trend import DampedTrend
from predictors.local_level import LocalLevel, likeliest
from traces.load import proportions

GAINS = np.geomspace(0.01, 1.0, 15)


def local_level_series(num_steps: int, gain: float, seed: int) -> np.ndarray:
    """Innovations form: the next value is the level plus a shock, of which the level keeps the share `gain`."""
    shock = np.random.default_rng(seed).normal(size=num_steps)
    level = np.concatenate([[0.0], np.cumsum(gain * shock)[:-1]])
    return level + shock


def slow_likeliest(series: np.ndarray) -> float:
    """The gain with the least sum of squared one-step errors: Gaussian likelihood, the start aside."""
    cost = []
    for gain in GAINS:
        level, total = series[0], 0.0
        for value in series[1:]:
            total += (value - level) ** 2
            level += gain * (value - level)
        cost.append(total)
    return float(GAINS[int(np.argmin(cost))])


@pytest.mark.parametrize("gain", [0.03, 0.2, 0.7])
def test_the_likeliest_gain_is_the_one_of_the_prediction_errors(gain):
    series = local_level_series(1500, gain, seed=1)
    found = GAINS[likeliest(np.diff(series)[:, None], GAINS)[0]]
    step = GAINS[1] / GAINS[0]
    assert found == pytest.approx(slow_likeliest(series), rel=step - 1)  # at most a neighbour on the grid
    assert abs(np.log(found / gain)) < 2 * np.log(step)


def test_every_series_gets_its_own_gain():
    series = np.stack([local_level_series(1500, gain, seed=2) for gain in (0.03, 0.7)], axis=1)
    slow, fast = GAINS[likeliest(np.diff(series, axis=0), GAINS)]
    assert slow < 0.1 < 0.4 < fast


def test_local_level_holds_the_average_of_the_likeliest_gain(make_trace):
    past = make_trace(seed=3).tokens
    history = proportions(past)
    predictor = LocalLevel()
    chosen = likeliest(np.diff(history, axis=0).reshape(len(history) - 1, -1), predictor.gains)
    expected = np.empty(chosen.shape)
    for series, index in enumerate(chosen):
        average = partial(decay_weights, decay=1.0 - predictor.gains[index])
        expected[series] = levels(history, [average], np.array([len(history)]))[0, 0].reshape(-1)[series]
    expected = expected.reshape(history.shape[1:])
    forecast = predictor.forecast(past, 5)
    np.testing.assert_allclose(forecast[4], expected / expected.sum(-1, keepdims=True), atol=1e-12)


def test_damped_trend_equals_the_slow_loop():
    past = np.random.default_rng(0).integers(1, 60, (30, 2, 4))
    history, half_token = proportions(past), 0.5 / (past[-20:].sum(-1).max() * 10)
    before, level = history[-20:-10].mean(0), history[-10:].mean(0)
    growth = np.log((level + half_token) / (before + half_token)) / 10
    current, expected = level, []
    for step in range(1, 8):
        current = current * np.exp(0.9**step * growth)
        expected.append(current / current.sum(-1, keepdims=True))
    np.testing.assert_allclose(DampedTrend(window=10, damping=0.9).forecast(past, 7), expected, atol=1e-12)


def test_a_trend_damped_at_once_is_a_window():
    past = np.random.default_rng(1).integers(1, 60, (30, 2, 4))
    forecast = DampedTrend(window=10, damping=0.0).forecast(past, 9)
    np.testing.assert_allclose(forecast, np.repeat(proportions(past)[-10:].mean(0)[None], 9, axis=0), atol=1e-12)


@pytest.mark.parametrize("predictor", [LocalLevel(), DampedTrend(20, 0.9)], ids=["local_level", "damped_trend"])
class TestBoth:
    @settings(max_examples=25)
    @given(num_steps=st.integers(1, 60), horizon=st.integers(1, 40), seed=st.integers(0, 99))
    def test_lies_on_the_simplex_and_follows_a_renaming(self, predictor, num_steps, horizon, seed):
        rng = np.random.default_rng(seed)
        past = rng.integers(0, 9, (num_steps, 2, 5))  # zeros are frequent
        forecast = predictor.forecast(past, horizon)
        assert (forecast >= 0).all()
        np.testing.assert_allclose(forecast.sum(-1), 1.0, atol=1e-12)
        order = rng.permutation(5)
        np.testing.assert_allclose(predictor.forecast(past[..., order], horizon), forecast[..., order], atol=1e-9)

    @settings(max_examples=25)
    @given(num_steps=st.integers(1, 60), seed=st.integers(0, 99))
    def test_a_constant_series_is_forecast_exactly(self, predictor, num_steps, seed):
        row = np.random.default_rng(seed).integers(0, 50, (1, 2, 6)) + np.eye(2, 6, dtype=int)
        forecast = predictor.forecast(np.repeat(row, num_steps, axis=0), 30)
        np.testing.assert_allclose(forecast, np.repeat(proportions(row), 30, axis=0), atol=1e-9)


@pytest.mark.parametrize(("window", "damping"), [(0, 0.9), (10, 1.0), (10, -0.1)])
def test_damped_trend_refuses_what_has_no_meaning(window, damping):
    with pytest.raises(ValueError, match=r"window|damping"):
        DampedTrend(window, damping)


@pytest.mark.parametrize(("num_gains", "smallest"), [(0, 0.1), (5, 0.0), (5, 1.5)])
def test_local_level_refuses_a_grid_without_gains(num_gains, smallest):
    with pytest.raises(ValueError, match=str(smallest)):
        LocalLevel(num_gains, smallest)
