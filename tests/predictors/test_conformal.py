"""Conformal intervals: nominal coverage where theory promises it, causality, and zero loads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.conformal import Rule, rolling_intervals, with_interval
from predictors.metrics import realised
from predictors.windows import HistoryMean, LastValue, SlidingWindow

FIXED = Rule(rate=0.0, memory=1000)


class Known(HistoryMean):
    """Forecasts shares that it was told, whatever the past."""

    def __init__(self, share):
        self.share = share

    def forecast(self, past, horizon):
        return np.repeat(self.share[None], horizon, axis=0)


def scattered_counts(num_steps: int, scale: np.ndarray, seed: int) -> np.ndarray:
    """Counts whose log loads scatter around equal ones with a standard deviation `scale` (S,)."""
    noise = np.random.default_rng(seed).normal(size=(num_steps, 2, 40)) * scale[:, None, None]
    return np.round(1e5 * np.exp(noise)).astype(int)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_split_conformal_covers_what_it_promises_on_exchangeable_errors(as_trace, coverage):
    """Golden: 400 origins one step apart, the same noise throughout."""
    trace = as_trace(scattered_counts(400, np.full(400, 0.2), seed=0))
    share = np.full((2, 40), 1 / 40)
    rule = Rule(coverage, rate=0.0, memory=1000)
    intervals = rolling_intervals(Known(share), trace, np.arange(1, 400), [1], rule)
    assert intervals.coverage()[0] == pytest.approx(coverage, abs=0.01)


def test_the_online_correction_restores_coverage_where_errors_grow(as_trace):
    """Noise triples over the run: errors of the past are too small throughout."""
    trace = as_trace(scattered_counts(600, np.linspace(0.1, 0.3, 600), seed=1))
    known = Known(np.full((2, 40), 1 / 40))
    found = [
        rolling_intervals(known, trace, np.arange(1, 600), [1], Rule(0.9, rate, memory=1000)).coverage()[0]
        for rate in (0.0, 0.1)
    ]
    assert found[0] < 0.83
    assert found[1] == pytest.approx(0.9, abs=0.015)


def test_the_spread_is_the_quantile_of_the_errors_known_at_the_origin(make_trace):
    """The whole procedure, slowly, without the online correction."""
    trace = make_trace(num_steps=120)
    predictor, cutoffs, horizon = SlidingWindow(10), np.arange(10, 111, 10), 10
    found = rolling_intervals(predictor, trace, cutoffs, [horizon], Rule(0.8, 0.0, 3))
    half = 0.5 / trace.tokens.sum(-1).max()
    errors = []
    for cutoff in cutoffs:
        forecast = predictor.forecast(trace.tokens[:cutoff], horizon).mean(0)
        actual = realised(trace.tokens[cutoff : cutoff + horizon]).mean(0)
        errors.append(np.abs(np.log((forecast + half) / (actual + half))))
    for origin, cutoff in enumerate(cutoffs):
        known = [error for error, made in zip(errors, cutoffs, strict=True) if made + horizon <= cutoff][-3:]
        for layer in range(2):
            pooled = sorted(value for error in known for value in error[layer])
            rank = int(np.ceil((len(pooled) + 1) * 0.8))
            expected = pooled[rank - 1] if rank <= len(pooled) else np.inf
            assert found.spread[origin, 0, layer] == pytest.approx(expected)
            inside = (errors[origin][layer] <= expected).mean() if known else np.nan
            assert found.covered[origin, 0, layer] == pytest.approx(inside, nan_ok=True)


def test_the_correction_waits_until_a_horizon_has_passed(make_trace, as_trace):
    """What follows step 200 cannot change a spread at or before it."""
    tokens = make_trace(num_steps=300).tokens
    other = tokens.copy()
    other[200:] = other[200:, :, ::-1]
    cutoffs = np.arange(20, 281, 20)
    first, second = (rolling_intervals(SlidingWindow(9), as_trace(x), cutoffs, [20, 50]) for x in (tokens, other))
    until = cutoffs <= 200
    np.testing.assert_array_equal(first.spread[until], second.spread[until])
    assert (first.spread[~until] != second.spread[~until]).any()


def test_horizons_past_the_end_and_origins_without_errors_are_not_counted(make_trace):
    intervals = rolling_intervals(SlidingWindow(9), make_trace(num_steps=100), [20, 40, 60, 80], [10, 30, 90])
    np.testing.assert_array_equal(
        np.isfinite(intervals.covered).all(-1),
        [[False, False, False], [True, False, False], [True, True, False], [True, False, False]],
    )
    assert np.isinf(intervals.spread[:, 2]).all()
    assert np.isfinite(intervals.coverage()[:2]).all()
    assert np.isnan(intervals.coverage()[2])


class TestWithInterval:
    def test_equals_the_last_origin_of_a_rolling_evaluation(self, make_trace):
        trace = make_trace(num_steps=200)
        forecast = with_interval(SlidingWindow(9), trace.tokens, 40, num_origins=5)
        origins = np.linspace(80, 160, 5).astype(int)
        spread = rolling_intervals(SlidingWindow(9), trace, np.append(origins, 200), [40]).spread[-1, 0]
        half = 0.5 / trace.tokens.sum(-1).max(0)[:, None]
        assert forecast.cutoff == 200
        expected = (forecast.proportion + half) * np.exp(spread)[:, None] - half
        np.testing.assert_allclose(forecast.upper, np.minimum(expected, 1.0))
        expected = (forecast.proportion + half) / np.exp(spread)[:, None] - half
        np.testing.assert_allclose(forecast.lower, np.maximum(expected, 0.0))

    @settings(max_examples=25)
    @given(num_steps=st.integers(1, 40), horizon=st.integers(1, 30), seed=st.integers(0, 99))
    def test_bounds_enclose_the_forecast_and_survive_zero_loads(self, num_steps, horizon, seed):
        past = np.random.default_rng(seed).integers(0, 3, (num_steps, 2, 4))
        past[:, 0, 0] = 0  # an expert without a token
        past[num_steps // 2 :, 1] = 0  # a layer that stops routing
        forecast = with_interval(SlidingWindow(5), past, horizon)
        assert forecast.lower is not None
        assert forecast.upper is not None
        assert (forecast.lower >= 0).all()
        assert (forecast.upper <= 1).all()
        assert (forecast.lower <= forecast.proportion + 1e-12).all()
        assert (forecast.upper >= forecast.proportion - 1e-12).all()

    def test_a_past_without_errors_bounds_nothing(self, make_trace):
        forecast = with_interval(LastValue(), make_trace(num_steps=20).tokens, 50)
        assert (forecast.lower == 0).all()
        assert (forecast.upper == 1).all()

    def test_a_series_that_is_not_forecast_has_no_bounds(self, make_trace):
        class Part(LastValue):
            def forecast(self, past, horizon):
                return np.where(np.arange(8) < 3, super().forecast(past, horizon), np.nan)

        forecast = with_interval(Part(), make_trace(num_steps=60).tokens, 5)
        for bound in (forecast.lower, forecast.upper):
            np.testing.assert_array_equal(np.isnan(bound), np.isnan(forecast.proportion))
        assert (forecast.upper[..., :3] < 1).all()

    def test_the_predictor_cannot_reach_or_spoil_the_past(self, make_trace):
        class Spoiler(LastValue):
            def forecast(self, past, horizon):
                assert past.base is None
                answer = super().forecast(past, horizon)
                past[:] = 0
                return answer

        past = make_trace(num_steps=60).tokens
        before = past.copy()
        with_interval(Spoiler(), past, 5)
        np.testing.assert_array_equal(past, before)


@pytest.mark.parametrize("setting", [{"coverage": 0.0}, {"coverage": 1.0}, {"rate": -0.1}, {"memory": 0}])
def test_a_rule_without_meaning_is_refused(setting):
    with pytest.raises(ValueError, match="interval"):
        Rule(**setting)


@pytest.mark.parametrize(
    ("cutoffs", "horizons"), [([], [5]), ([20], []), ([20], [0]), ([40, 20], [5]), ([0, 20], [5]), ([20, 101], [5])]
)
def test_cutoffs_out_of_order_or_place_are_refused(make_trace, cutoffs, horizons):
    with pytest.raises(ValueError, match="cutoffs"):
        rolling_intervals(LastValue(), make_trace(num_steps=100), cutoffs, horizons)
