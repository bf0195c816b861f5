"""ARIMA on a sample: that it is CSS-ML's forecast, of the right series, and says when it fails."""

import sys

import numpy as np
import pytest

from predictors.sampled import OnSample, sample_series, spread
from predictors.windows import SlidingWindow


class TestArima:
    @pytest.fixture(autouse=True)
    def _needs_statsforecast(self):
        pytest.importorskip("statsforecast", reason="ARIMA needs the extra [forecast]")

    def arima(self, **arguments):
        from predictors.arima import Arima

        return Arima(**{"num_series": 3, "seed": 1} | arguments)

    def test_forecasts_the_level_not_zero(self):
        """statsforecast's CSS silently forecasts 0 once d >= 1."""
        past = np.random.default_rng(0).multinomial(1000, np.full(4, 0.25), size=(400, 1))
        forecast = self.arima().forecast(past, 200)
        assert np.nanmin(forecast) > 0.2
        assert np.nanmax(forecast) < 0.3

    def test_equals_statsforecast_series_by_series(self, make_trace):
        from statsforecast.models import ARIMA

        trace = make_trace(seed=4)
        forecast = self.arima().forecast(trace.tokens, 10)
        for layer, expert in np.argwhere(~np.isnan(forecast[0])):
            series = np.ascontiguousarray(trace.proportion[:, layer, expert])
            expected = ARIMA(order=(5, 1, 5), method="CSS-ML").forecast(series, 10)["mean"]
            np.testing.assert_array_equal(forecast[:, layer, expert], expected)

    def test_max_history_forgets_what_is_older(self, make_trace):
        tokens = make_trace(seed=5).tokens
        short = self.arima(max_history=150).forecast(tokens, 5)
        np.testing.assert_array_equal(short, self.arima().forecast(tokens[-150:], 5))

    def test_says_how_many_series_found_no_fit(self, make_trace):
        tokens = make_trace(seed=5).tokens[:3]
        with pytest.warns(RuntimeWarning, match="3 of 3 series of 3 steps"):
            forecast = self.arima().forecast(tokens, 5)
        last = tokens[-1] / tokens[-1].sum(-1, keepdims=True)
        known = ~np.isnan(forecast[0])
        np.testing.assert_allclose(forecast[4][known], last[known])

    def test_refuses_a_wrong_order_or_history(self):
        with pytest.raises(ValueError, match=r"\[5, 1\]"):
            self.arima(order=[5, 1])
        with pytest.raises(ValueError, match="0"):
            self.arima(max_history=0)


def test_without_statsforecast_it_names_the_extra(monkeypatch, make_trace):
    from predictors.arima import Arima

    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(ImportError, match=r"\.\[forecast\]"):
        Arima().forecast(make_trace().tokens, 5)


@pytest.mark.parametrize(
    ("num_series", "per_layer"),
    [(2, [0, 1, 0, 0, 1, 0]), (6, [1] * 6), (14, [2, 3, 2, 2, 3, 2]), (999, [8] * 6)],
)
def test_sample_is_spread_over_layers(num_series, per_layer):
    assert sample_series(6, 8, num_series, seed=0).sum(1).tolist() == per_layer


def test_sample_depends_on_its_seed_only():
    first, again, other = (sample_series(4, 32, 8, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_spread_never_repeats_a_layer():
    for num_layers in range(1, 12):
        for num_chosen in range(num_layers + 1):
            assert len(set(spread(num_layers, num_chosen))) == num_chosen


def test_on_sample_keeps_the_values_and_masks_the_rest(make_trace):
    past = make_trace(seed=6).tokens
    whole = SlidingWindow(20).forecast(past, 8)
    masked = OnSample(SlidingWindow(20), num_series=5, seed=3).forecast(past, 8)
    chosen = sample_series(2, 8, 5, seed=3)
    np.testing.assert_array_equal(masked[:, chosen], whole[:, chosen])
    assert np.isnan(masked[:, ~chosen]).all()


def test_on_sample_passes_other_runs_on(make_trace):
    class Learner(SlidingWindow):
        def fit(self, traces):
            self.seen = traces

    wrapped = OnSample(Learner(5), num_series=1, seed=0)
    wrapped.fit([make_trace()])
    assert len(wrapped.predictor.seen) == 1
    assert not hasattr(OnSample(SlidingWindow(5), num_series=1, seed=0), "fit")


def test_an_empty_sample_is_refused():
    with pytest.raises(ValueError, match="0"):
        sample_series(2, 8, 0, seed=0)
