"""Hedge and the window chosen by backtest against slow loops, and what any mixture must keep."""

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.averages import decay_weights, scale_free_weights, window_weights
from predictors.base import onto_simplex
from predictors.chosen_window import BacktestedWindow
from predictors.hedge import Hedge, exponential_weights
from predictors.members import held, returning, starts, trend
from predictors.replay import past_origins, replayed_losses, scored_horizon
from predictors.windows import SlidingWindow
from traces.load import proportions

POOL = {"windows": [5, 40], "decays": [0.9], "gains": [4.0, 12.0], "dampings": [0.5, 1.0], "powers": [0.2]}


def counts(num_steps: int, seed: int, num_experts: int = 6) -> np.ndarray:
    """Random walks of log loads, two layers."""
    rng = np.random.default_rng(seed)
    logits = 0.05 * np.cumsum(rng.normal(size=(num_steps, 2, num_experts)), axis=0)
    return rng.poisson(400 * np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


def slow_member(kind: str, value: float, history: np.ndarray, horizon: int) -> np.ndarray:
    """One member's forecast after `history`, from its definition."""
    t = len(history)

    def average(weights) -> np.ndarray:
        return sum(w * p for w, p in zip(weights, history, strict=True))

    def scale_free(gain: float) -> np.ndarray:
        return average(scale_free_weights(t, gain, 0.3))

    steps = []
    for u in range(1, horizon + 1):
        if kind == "window":
            steps.append(history[-int(value) :].mean(0))
        elif kind == "decay":
            steps.append(average(decay_weights(t, value)))
        elif kind == "gain":
            steps.append(scale_free(value))
        elif kind == "trend":
            slope = (scale_free(6.0) - scale_free(3.0)) / (1 / 3 - 1 / 6)
            steps.append(scale_free(6.0) + value * slope * (1 / 6 + np.log((t + u) / t)))
        else:
            load, share_gone = scale_free(10.0), 1 - (t / (t + u)) ** value
            flattening = np.zeros_like(load)
            for layer, expert in np.argwhere(load > 0):
                mean_log = sum(p * np.log(p) for p in load[layer] if p > 0)
                flattening[layer, expert] = load[layer, expert] * (mean_log - np.log(load[layer, expert]))
            steps.append(load + share_gone * flattening)
    return np.stack(steps)


def slow_hedge(past: np.ndarray, horizon: int, rate: float, num_origins: int) -> np.ndarray:
    """Every member forecasts from every past origin, is scored, and mixed, one at a time."""
    history = proportions(past)
    pool = [
        *(("window", v) for v in POOL["windows"]),
        *(("decay", v) for v in POOL["decays"]),
        *(("gain", v) for v in POOL["gains"]),
        *(("trend", v) for v in POOL["dampings"]),
        *(("return", v) for v in POOL["powers"]),
    ]
    scored = min(horizon, max(len(history) // 4, 1))
    loss = np.zeros((len(pool), history.shape[1]))
    origins = past_origins(len(history), scored, num_origins)
    for m, (kind, value) in enumerate(pool):
        for origin in origins:
            forecast = onto_simplex(slow_member(kind, value, history[:origin], scored).mean(0)[None])[0]
            actual = history[origin : origin + scored].mean(0)
            loss[m] += np.abs(forecast - actual).sum(-1) / 2 / len(origins)
    mixture = np.zeros((horizon, *history.shape[1:]))
    for layer in range(history.shape[1]):
        weight = np.exp(-rate * loss[:, layer] / loss[:, layer].mean())
        for m, (kind, value) in enumerate(pool):
            path = onto_simplex(slow_member(kind, value, history, horizon))[:, layer]
            mixture[:, layer] += weight[m] / weight.sum() * path
    return mixture


@pytest.mark.parametrize(("num_steps", "horizon"), [(2, 3), (7, 1), (60, 10), (60, 200)])
def test_hedge_equals_the_slow_loop(num_steps, horizon):
    past = counts(num_steps, seed=num_steps)
    fast = Hedge(**POOL, rate=7.0, num_origins=5).forecast(past, horizon)
    np.testing.assert_allclose(fast, slow_hedge(past, horizon, rate=7.0, num_origins=5), atol=1e-10)


def test_the_window_of_least_replayed_loss_is_held_layer_by_layer():
    past = counts(80, seed=3)
    history, windows = proportions(past), [2, 10, 50]
    loss = np.zeros((3, 2))
    for w, window in enumerate(windows):
        for origin in past_origins(80, 20, 6):
            gap = SlidingWindow(window).forecast(past[:origin], 1)[0] - history[origin : origin + 20].mean(0)
            loss[w] += np.abs(gap).sum(-1)
    forecast = BacktestedWindow(windows, num_origins=6).forecast(past, 30)
    for layer, best in enumerate(loss.argmin(0)):
        expected = history[-windows[best] :, layer].mean(0)
        np.testing.assert_allclose(forecast[:, layer], np.repeat(expected[None], 30, axis=0), atol=1e-12)


class TestReplay:
    @given(num_steps=st.integers(1, 400), horizon=st.integers(1, 3000), num_origins=st.integers(1, 40))
    def test_only_forecasts_whose_horizon_has_passed_are_scored(self, num_steps, horizon, num_origins):
        scored = scored_horizon(num_steps, horizon)
        origins = past_origins(num_steps, scored, num_origins)
        assert 1 <= scored <= horizon
        assert (origins >= 1).all()
        assert (origins + scored <= num_steps).all()
        assert len(origins) <= num_origins
        assert len(origins) or num_steps == 1

    def test_losses_prefer_what_fits(self):
        """White noise around a fixed load: the longer the window the better; after a jump the shorter."""
        rng = np.random.default_rng(0)
        noise = proportions(rng.multinomial(200, [0.1, 0.2, 0.3, 0.4], size=(400, 1)))
        short, long = held(partial(window_weights, window=3)), held(partial(window_weights, window=100))
        assert np.diff(replayed_losses(noise, [short, long], 50, 16), axis=0) < 0
        jumped = noise.copy()
        jumped[180:] = jumped[180:, :, ::-1]
        assert np.diff(replayed_losses(jumped, [short, long], 50, 16), axis=0) > 0


class TestMembers:
    def test_a_return_is_the_straight_way_to_uniform_loads_when_they_are_near(self):
        near = proportions(1000 + np.random.default_rng(0).integers(-9, 10, (1, 2, 6)))
        level, direction = starts(near, [returning(0.2)], np.array([1]))[0]
        np.testing.assert_allclose(direction, 1 / 6 - level, atol=1e-5)

    def test_a_return_follows_the_powers_of_the_loads(self):
        """Its direction is their slope at power 1; an expert without tokens stays without."""
        load = proportions(np.array([[[0, 1, 5, 90]]]))
        direction = starts(load, [returning(0.2)], np.array([1]))[0][1]
        nearby = load ** (1 - 1e-6)
        nearby[..., 0] = 0.0
        np.testing.assert_allclose(direction, (nearby / nearby.sum() - load) / 1e-6, atol=1e-5)

    def test_a_return_goes_half_as_far_each_time_the_run_doubles_twice(self):
        gone = returning(0.5).reach(np.array([0.0, 3.0, 15.0]))
        np.testing.assert_allclose(gone, [0.0, 1 / 2, 3 / 4])

    @pytest.mark.parametrize("num_steps", [400, 4000])
    def test_a_full_trend_foretells_loads_that_move_along_log_time(self, num_steps):
        """The claim of `trend`: exact up to what the first steps, where gains are capped, leave behind."""
        t = np.arange(1, 2 * num_steps + 1)
        first = 0.5 + 0.03 * np.log(t / num_steps)
        history = np.stack([first, 1 - first], axis=-1)[:, None]
        member = trend(1.0)
        level, direction = starts(history[:num_steps], [member], np.array([num_steps]))[0]
        ratio = np.arange(1, num_steps + 1) / num_steps
        forecast = level + member.reach(ratio)[:, None, None] * direction
        np.testing.assert_allclose(forecast, history[num_steps:], atol=3e-4)


@pytest.mark.parametrize("predictor", [Hedge(**POOL), BacktestedWindow([3, 20, 100])], ids=["hedge", "chosen_window"])
class TestAnyMixture:
    @settings(max_examples=25)
    @given(num_steps=st.integers(1, 60), horizon=st.integers(1, 90), seed=st.integers(0, 99))
    def test_lies_on_the_simplex(self, predictor, num_steps, horizon, seed):
        forecast = predictor.forecast(counts(num_steps, seed), horizon)
        assert (forecast >= 0).all()
        np.testing.assert_allclose(forecast.sum(-1), 1.0, atol=1e-12)

    @settings(max_examples=25)
    @given(num_steps=st.integers(1, 40), seed=st.integers(0, 99))
    def test_renaming_experts_renames_the_forecast(self, predictor, num_steps, seed):
        past = counts(num_steps, seed)
        order = np.random.default_rng(seed).permutation(past.shape[-1])
        expected = predictor.forecast(past, 9)[..., order]
        np.testing.assert_allclose(predictor.forecast(past[..., order], 9), expected, atol=1e-12)

    @settings(max_examples=25)
    @given(num_steps=st.integers(2, 40), horizon=st.integers(1, 90), seed=st.integers(0, 99))
    def test_a_constant_series_is_forecast_exactly(self, predictor, num_steps, horizon, seed):
        row = np.random.default_rng(seed).integers(0, 50, (1, 2, 6)) + np.eye(2, 6, dtype=int)
        expected = np.repeat(proportions(row), horizon, axis=0)
        forecast = predictor.forecast(np.repeat(row, num_steps, axis=0), horizon)
        np.testing.assert_allclose(forecast, expected, atol=1e-9)

    def test_layers_do_not_touch_one_another(self, predictor):
        past = counts(60, seed=5)
        other = past.copy()
        other[:, 1] = other[::-1, 1]
        np.testing.assert_allclose(predictor.forecast(past, 8)[:, 0], predictor.forecast(other, 8)[:, 0], atol=1e-12)


@given(seed=st.integers(0, 99), rate=st.floats(0.0, 50.0))
def test_exponential_weights_are_a_distribution_that_prefers_small_losses(seed, rate):
    loss = np.random.default_rng(seed).random((5, 3))
    weight = exponential_weights(loss, rate)
    np.testing.assert_allclose(weight.sum(0), 1.0)
    order = np.argsort(loss, axis=0)
    assert (np.diff(np.take_along_axis(weight, order, axis=0), axis=0) <= 1e-15).all()
    np.testing.assert_allclose(exponential_weights(7 * loss, rate), weight)


def test_a_pool_that_lost_nothing_is_mixed_alike():
    np.testing.assert_array_equal(exponential_weights(np.zeros((4, 2)), 10.0), np.full((4, 2), 0.25))


def test_hedge_refuses_an_empty_pool_and_a_negative_rate():
    with pytest.raises(ValueError, match="pool"):
        Hedge()
    with pytest.raises(ValueError, match="-1"):
        Hedge(**POOL, rate=-1.0)
    with pytest.raises(ValueError, match="0"):
        Hedge(**POOL, num_origins=0)


@pytest.mark.parametrize(("windows", "num_origins"), [([], 5), ([0, 5], 5), ([5], 0)])
def test_a_chosen_window_refuses_an_empty_grid(windows, num_origins):
    with pytest.raises(ValueError, match="must be"):
        BacktestedWindow(windows, num_origins)


def test_large_traces_are_fast():
    past = np.random.default_rng(3).poisson(300, size=(3000, 24, 64))
    started = time.process_time()
    forecast = Hedge(**POOL).forecast(past, 1000)
    assert time.process_time() - started < 3.0  # about 0.5 s on an idle core
    assert np.abs(forecast - 1 / 64).max() < 0.01
