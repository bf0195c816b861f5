"""Seconds a forecast takes: 24 layers x 64 experts (ARIMA, ETS, Theta: one series), 3,000 past steps, horizon 1,000."""

import numpy as np
import pytest

from predictors.arima import Arima
from predictors.autoregression import Autoregression
from predictors.chosen_window import BacktestedWindow
from predictors.damped_trend import DampedTrend
from predictors.hedge import Hedge
from predictors.local_level import LocalLevel
from predictors.scale_free import ScaleFreeAverage
from predictors.smoothing import ExponentialMovingAverage
from predictors.statistical import Statistical
from predictors.windows import SlidingWindow

NUM_STEPS, NUM_LAYERS, NUM_EXPERTS, HORIZON = 3000, 24, 64, 1000


@pytest.fixture(scope="module")
def past() -> np.ndarray:
    """Counts around slowly drifting loads."""
    rng = np.random.default_rng(0)
    drift = 0.005 * np.cumsum(rng.normal(size=(NUM_STEPS, NUM_LAYERS, NUM_EXPERTS)), axis=0)
    share = np.exp(drift) / np.exp(drift).sum(-1, keepdims=True)
    return rng.poisson(16_384 * share)


PREDICTORS = {
    "sw_avg_100": SlidingWindow(100),
    "ema_0.98": ExponentialMovingAverage(0.98),
    "ema_scale_free": ScaleFreeAverage(10.0),
    "sw_avg_backtested": BacktestedWindow([10, 20, 50, 100, 200, 500, 1000]),
    # the pool of conf/predictor/hedge.yaml
    "hedge": Hedge([100, 500], [0.98, 0.99], [5.0, 10.0, 20.0], dampings=[0.5, 1.0], powers=[0.1, 0.4]),
    "ar_20": Autoregression(20),
    "local_level": LocalLevel(),
    "damped_trend": DampedTrend(100, 0.99),
}


@pytest.mark.parametrize("predictor", PREDICTORS.values(), ids=PREDICTORS.keys())
def test_all_series(benchmark, predictor, past):
    forecast = benchmark(predictor.forecast, past, HORIZON)
    assert forecast.shape == (HORIZON, NUM_LAYERS, NUM_EXPERTS)


@pytest.mark.parametrize(
    "predictor",
    [Arima(num_series=1), *(Statistical(model, num_series=1) for model in ("AutoETS", "DynamicOptimizedTheta"))],
    ids=["arima_515", "auto_ets", "theta"],
)
def test_per_sampled_series(benchmark, predictor, past):
    pytest.importorskip("statsforecast", reason="statsforecast's models need the extra [forecast]")
    forecast = benchmark.pedantic(predictor.forecast, (past, HORIZON), rounds=3, warmup_rounds=1)
    assert np.isfinite(forecast).any(-1).any(-1).all()
