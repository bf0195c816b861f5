"""Seconds a forecast takes: 24 layers x 64 experts (ARIMA: one series), 3,000 past steps, horizon 1,000."""

import numpy as np
import pytest

from predictors.arima import Arima
from predictors.autoregression import Autoregression
from predictors.smoothing import ExponentialMovingAverage
from predictors.windows import SlidingWindow

NUM_STEPS, NUM_LAYERS, NUM_EXPERTS, HORIZON = 3000, 24, 64, 1000


@pytest.fixture(scope="module")
def past() -> np.ndarray:
    """Counts around slowly drifting loads."""
    rng = np.random.default_rng(0)
    drift = 0.005 * np.cumsum(rng.normal(size=(NUM_STEPS, NUM_LAYERS, NUM_EXPERTS)), axis=0)
    share = np.exp(drift) / np.exp(drift).sum(-1, keepdims=True)
    return rng.poisson(16_384 * share)


@pytest.mark.parametrize(
    "predictor",
    [SlidingWindow(100), ExponentialMovingAverage(0.98), Autoregression(20)],
    ids=["sw_avg_100", "ema_0.98", "ar_20"],
)
def test_all_series(benchmark, predictor, past):
    forecast = benchmark(predictor.forecast, past, HORIZON)
    assert forecast.shape == (HORIZON, NUM_LAYERS, NUM_EXPERTS)


def test_arima_per_sampled_series(benchmark, past):
    pytest.importorskip("statsforecast", reason="ARIMA needs the extra [forecast]")
    forecast = benchmark.pedantic(Arima(num_series=1).forecast, (past, HORIZON), rounds=3, warmup_rounds=1)
    assert np.isfinite(forecast).any(-1).any(-1).all()
