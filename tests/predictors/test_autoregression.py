"""The batched AR against ordinary least squares, and its safety over long horizons."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.autoregression import Autoregression, fit_coefficients, iterate
from traces.load import proportions


def padded_least_squares(series: np.ndarray, order: int) -> np.ndarray:
    """Ordinary least squares of a zero-padded series on its own last `order` values."""
    padded = np.concatenate([np.zeros(order), series, np.zeros(order)])
    design = np.stack([padded[order - lag : len(padded) - lag] for lag in range(1, order + 1)], axis=1)
    return np.linalg.lstsq(design, padded[order:], rcond=None)[0]


@given(num_steps=st.integers(12, 60), order=st.integers(1, 8), seed=st.integers(0, 99))
def test_coefficients_equal_least_squares(num_steps, order, seed):
    series = np.random.default_rng(seed).normal(size=(num_steps, 3))
    expected = np.stack([padded_least_squares(series[:, b], order) for b in range(3)])
    np.testing.assert_allclose(fit_coefficients(series, order), expected, atol=1e-6)


def test_coefficients_find_a_known_process():
    rng = np.random.default_rng(0)
    series = np.zeros((20_000, 1))
    for t in range(2, len(series)):
        series[t] = 0.5 * series[t - 1] - 0.3 * series[t - 2] + rng.normal()
    np.testing.assert_allclose(fit_coefficients(series, 2)[0], [0.5, -0.3], atol=0.03)


@given(seed=st.integers(0, 99), order=st.integers(1, 6))
def test_every_fit_is_stationary(seed, order):
    """Even on an exploding series, all roots lie inside the unit circle."""
    rng = np.random.default_rng(seed)
    series = np.cumsum(rng.normal(size=(40, 2)), axis=0) * np.exp(0.1 * np.arange(40))[:, None]
    for phi in fit_coefficients(series, order):
        assert np.abs(np.roots([1.0, *-phi])).max() < 1


def test_iterate_equals_the_slow_loop():
    rng = np.random.default_rng(1)
    series, phi = rng.normal(size=(10, 3)), rng.normal(0, 0.3, (3, 4))
    extended = list(series)
    for _ in range(7):
        extended.append(np.array([sum(phi[b, k] * extended[-1 - k][b] for k in range(4)) for b in range(3)]))
    np.testing.assert_allclose(iterate(series, phi, 7), np.stack(extended[10:]))


def test_a_still_series_beside_a_moving_one_stays_still():
    series = np.random.default_rng(2).normal(size=(100, 2))
    series[:, 1] = 0.0
    coefficients = fit_coefficients(series, 3)
    assert (coefficients[1] == 0).all()
    assert (iterate(series, coefficients, 20)[:, 1] == 0).all()


def test_a_past_too_short_for_any_lag_is_held():
    past = np.array([[[1, 3]], [[3, 1]]])
    np.testing.assert_allclose(Autoregression(5).forecast(past, 2), np.full((2, 1, 2), proportions(past[1])))


def test_order_must_be_positive():
    with pytest.raises(ValueError, match="0"):
        Autoregression(0)


def test_large_traces_are_fast():
    past = np.random.default_rng(3).poisson(300, size=(3000, 24, 64))
    started = time.perf_counter()
    forecast = Autoregression(20).forecast(past, 1000)
    assert time.perf_counter() - started < 3.0  # about 0.35 s on an idle core
    assert np.abs(forecast - 1 / 64).max() < 0.01
