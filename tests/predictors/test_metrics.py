"""The error metrics against loops over cells, and on traces with zeros."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from predictors.metrics import METRICS, errors_by_horizon

NAMES = (*METRICS, "zero_share")


def errors(forecast: np.ndarray, future: np.ndarray) -> dict[str, np.ndarray]:
    """name -> (L,) at the horizon that is all of the forecast."""
    return {name: values[0] for name, values in errors_by_horizon(forecast, future, [len(forecast)]).items()}


def slow_errors(forecast: np.ndarray, future: np.ndarray) -> dict[str, float]:
    """One layer, (H, E), cell by cell; None where there is nothing to average."""
    ratios, distances, zeros, means = [], [], [], []
    rows = [(f, n / n.sum()) for f, n in zip(forecast, future, strict=True) if n.sum()]
    for row, share in rows:
        distances.append(sum(abs(a - b) for a, b in zip(row, share, strict=True)) / 2)
        for a, b in zip(row, share, strict=True):
            if not np.isnan(a):
                zeros.append(b == 0)
                if b > 0:
                    ratios.append(abs(a - b) / b)
    for e in range(forecast.shape[1]):
        actual = np.mean([share[e] for _, share in rows]) if rows else 0
        predicted = np.mean([row[e] for row, _ in rows]) if rows else np.nan
        if actual > 0 and not np.isnan(predicted):
            means.append(abs(predicted - actual) / actual)
    found = zip(NAMES, (ratios, means, distances, zeros), strict=True)
    return {name: np.mean(values) if values else np.nan for name, values in found}


def random_case(seed: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Forecast and future with zeros, idle layers and series that were not forecast."""
    rng = np.random.default_rng(seed)
    future = rng.integers(0, 5, (horizon, 3, 4)) * (rng.random((horizon, 3, 1)) > 0.3)
    forecast = rng.dirichlet(np.ones(4), size=(horizon, 3))
    forecast[:, 1, rng.random(4) < 0.4] = np.nan
    return forecast, future


@given(seed=st.integers(0, 10_000))
def test_every_horizon_equals_the_loops(seed):
    forecast, future = random_case(seed, horizon=9)
    horizons = [9, 1, 4, 4]
    together = errors_by_horizon(forecast, future, horizons)
    assert set(together) == set(NAMES)
    for n, h in enumerate(horizons):
        for layer in range(3):
            for name, expected in slow_errors(forecast[:h, layer], future[:h, layer]).items():
                np.testing.assert_allclose(together[name][n, layer], expected, atol=1e-12, err_msg=name)


@given(future=arrays(np.int64, (5, 2, 3), elements=st.integers(0, 3)))
def test_zeros_and_idle_layers_raise_no_warning(future):
    future[:, 1] = 0
    forecast = np.full((5, 2, 3), 1 / 3)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        found = errors_by_horizon(forecast, future, [1, 5])
    assert all(np.isnan(values[:, 1]).all() for values in found.values()), "an idle layer has no error"


@given(future=arrays(np.int64, (5, 2, 3), elements=st.integers(1, 99)))
def test_a_perfect_forecast_has_no_error(future):
    perfect = future / future.sum(-1, keepdims=True)
    for values in errors_by_horizon(perfect, future, [1, 5]).values():
        np.testing.assert_allclose(values, 0.0, atol=1e-12)


def test_worked_example():
    """Shares .2 and .8, forecast .3 and .7: relative .5 and .125, distance .1."""
    forecast, future = np.array([[[0.3, 0.7]]]), np.array([[[20, 80]]])
    assert errors(forecast, future)["relative_error"] == pytest.approx([(0.5 + 0.125) / 2])
    assert errors(forecast, future)["total_variation"] == pytest.approx([0.1])


def test_errors_of_the_mean_cancel_over_the_horizon():
    forecast, future = np.full((2, 1, 2), 0.5), np.array([[[1, 3]], [[3, 1]]])
    assert errors(forecast, future)["relative_error_of_mean"] == pytest.approx([0.0])
    assert errors(forecast, future)["relative_error"] == pytest.approx([(1 + 1 / 3) / 2])


def test_cells_without_load_are_left_out_and_reported():
    forecast, future = np.array([[[0.5, 0.25, 0.25]]]), np.array([[[1, 1, 0]]])
    assert errors(forecast, future)["relative_error"] == pytest.approx([0.25])
    assert errors(forecast, future)["zero_share"] == pytest.approx([1 / 3])


def test_a_partly_forecast_layer_has_no_total_variation():
    forecast, future = np.array([[[0.5, np.nan], [0.5, 0.5]]]), np.array([[[1, 1], [1, 3]]])
    np.testing.assert_array_equal(np.isnan(errors(forecast, future)["total_variation"]), [True, False])
    assert errors(forecast, future)["relative_error"][0] == 0.0


@pytest.mark.parametrize("horizon", [0, 6, -1])
def test_a_horizon_outside_the_forecast_is_refused(horizon):
    forecast, future = random_case(0, horizon=5)
    with pytest.raises(ValueError, match=str(horizon)):
        errors_by_horizon(forecast, future, [horizon])
