"""statsforecast's models on a sample: that they are its forecasts, of the right series, and say when they fail."""

import sys

import numpy as np
import pytest

from predictors.sampled import sample_series
from predictors.statistical import Statistical


class TestWithStatsforecast:
    @pytest.fixture(autouse=True)
    def _needs_statsforecast(self):
        pytest.importorskip("statsforecast", reason="statsforecast's models need the extra [forecast]")

    @pytest.mark.parametrize("model", ["AutoETS", "DynamicOptimizedTheta", "AutoARIMA"])
    def test_equals_statsforecast_series_by_series(self, model, make_trace):
        from statsforecast import models

        trace = make_trace(seed=4)
        forecast = Statistical(model, num_series=2, seed=1, max_history=80).forecast(trace.tokens, 10)
        np.testing.assert_array_equal(~np.isnan(forecast[0]), sample_series(2, 8, 2, seed=1))
        for layer, expert in np.argwhere(~np.isnan(forecast[0])):
            series = np.ascontiguousarray(trace.proportion[-80:, layer, expert])
            expected = getattr(models, model)().forecast(series, 10)["mean"]
            np.testing.assert_array_equal(forecast[:, layer, expert], np.clip(expected, 0.0, 1.0))

    def test_settings_reach_the_model(self, make_trace):
        past = make_trace(seed=4).tokens
        drifting, held = (
            Statistical("AutoETS", 1, settings={"model": kind}).forecast(past, 20) for kind in ("AAN", "ANN")
        )
        chosen = ~np.isnan(held[0])
        assert np.ptp(held[:, chosen]) == 0.0
        assert np.ptp(drifting[:, chosen]) > 0.0

    @pytest.mark.parametrize("model", ["AutoETS", "DynamicOptimizedTheta"])
    @pytest.mark.parametrize("known_steps", [1, 3])
    def test_says_how_many_series_found_no_fit(self, model, known_steps, make_trace):
        past = make_trace(seed=5).tokens[:known_steps]
        with pytest.warns(RuntimeWarning, match=f"{model} found no fit for 3 of 3 series of {known_steps} steps"):
            forecast = Statistical(model, num_series=3).forecast(past, 5)
        last = past[-1] / past[-1].sum(-1, keepdims=True)
        known = ~np.isnan(forecast[0])
        np.testing.assert_allclose(forecast[4][known], last[known])

    def test_refuses_a_model_that_is_not_there(self, make_trace):
        with pytest.raises(ValueError, match="Prophecy"):
            Statistical("Prophecy").forecast(make_trace().tokens, 5)


def test_refuses_an_empty_history():
    with pytest.raises(ValueError, match="0"):
        Statistical("AutoETS", max_history=0)


def test_without_statsforecast_it_names_the_extra(monkeypatch, make_trace):
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(ImportError, match=r"AutoETS.*\.\[forecast\]"):
        Statistical("AutoETS").forecast(make_trace().tokens, 5)
