"""The backtest: the future is out of reach, prefixes are exact, and each error stands beside its floor."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from predictors.backtest import backtest, forecast_at, rolling_origins
from predictors.metrics import METRICS, errors_by_horizon
from predictors.sampled import OnSample
from predictors.windows import LastValue, SlidingWindow


class Spy(LastValue):
    """Notes what it is given and tries to reach what lies behind it."""

    def __init__(self):
        self.seen = []

    def forecast(self, past, horizon):
        assert past.base is None, "the past is a view: the future can be reached through it"
        self.seen.append((past.copy(), horizon))
        answer = super().forecast(past, horizon)
        past[:] = 0  # nor can a predictor spoil the trace
        return answer


def test_the_future_is_out_of_reach(make_trace):
    trace = make_trace(num_steps=60)
    before = trace.tokens.copy()
    spy = Spy()
    backtest(spy, trace, [20, 40], [5, 10])
    np.testing.assert_array_equal(trace.tokens, before)
    for (past, horizon), cutoff in zip(spy.seen, (20, 40), strict=True):
        np.testing.assert_array_equal(past, trace.tokens[:cutoff])
        assert horizon == 10


def test_errors_do_not_depend_on_what_follows_the_horizon(make_trace, as_trace):
    tokens = make_trace(num_steps=60).tokens
    other = tokens.copy()
    other[30:] = other[30:][::-1]
    first, second = (backtest(SlidingWindow(5), as_trace(x), [20], [10]) for x in (tokens, other))
    for name in METRICS:
        np.testing.assert_array_equal(first.errors[name], second.errors[name])


def test_horizons_past_the_end_are_nan_and_the_rest_is_the_prefix(make_trace):
    trace = make_trace(num_steps=60)
    spy = Spy()
    result = backtest(spy, trace, [20, 52, 60], [10, 5, 30])
    assert [horizon for _, horizon in spy.seen] == [30, 5]
    for name in (*METRICS, "zero_share"):
        found = np.isfinite(result.errors[name]).all(-1)
        np.testing.assert_array_equal(found, [[True] * 3, [False, True, False], [False] * 3])
    expected = errors_by_horizon(LastValue().forecast(trace.tokens[:52], 5), trace.tokens[52:57], [5])
    np.testing.assert_allclose(result.errors["total_variation"][1, 1], expected["total_variation"][0])
    np.testing.assert_array_equal(np.isfinite(result.seconds), [True, True, False])


class Uniform(LastValue):
    """The perfect forecaster of uniform loads."""

    def forecast(self, past, horizon):
        return np.full((horizon, *past.shape[1:]), 1 / past.shape[2])


def test_a_perfect_forecaster_sits_on_the_floor(as_trace):
    """512 independent tokens a step, each at two distinct experts of 16: the floor's own assumption."""
    keys = np.random.default_rng(1).random((400, 2, 512, 16), dtype=np.float32)
    chosen = np.argpartition(keys, 1, axis=-1)[..., :2].reshape(400, 2, -1)
    trace = as_trace((chosen[..., None] == np.arange(16)).sum(2))
    result = backtest(Uniform(), trace, rolling_origins(trace, 100, 100, 100), [100], num_draws=300)
    for name in METRICS:
        assert (result.errors[name] / result.floor[name]).mean() == pytest.approx(1.0, rel=0.1)


def test_sampled_predictors_get_the_floor_of_their_series(make_trace):
    trace = make_trace(num_steps=200)
    result = backtest(OnSample(SlidingWindow(20), num_series=2, seed=0), trace, [100], [50])
    assert np.isfinite(result.floor["relative_error"]).all()
    assert np.isnan(result.floor["total_variation"]).all()


def test_the_floor_is_the_same_for_every_predictor_and_repeatable(make_trace):
    trace = make_trace(num_steps=200)
    floors = [backtest(p, trace, [100, 120], [50]).floor for p in (LastValue(), SlidingWindow(9))]
    for name in METRICS:
        np.testing.assert_array_equal(floors[0][name], floors[1][name])


def test_rolling_origins_leave_room_for_the_horizon(make_trace):
    trace = make_trace(num_steps=100)
    assert rolling_origins(trace, first=40, stride=25, horizon=10).tolist() == [40, 65, 90]
    with pytest.raises(ValueError, match="100 recorded"):
        rolling_origins(trace, first=95, stride=5, horizon=10)
    with pytest.raises(ValueError, match="stride"):
        rolling_origins(trace, first=40, stride=0, horizon=10)


@pytest.mark.parametrize("cutoff", [0, 101, -5])
def test_a_cutoff_outside_the_trace_is_refused(cutoff, make_trace):
    with pytest.raises(ValueError, match=str(cutoff)):
        forecast_at(LastValue(), make_trace(num_steps=100), cutoff, 5)


def test_a_forecast_of_the_wrong_shape_names_its_predictor(make_trace):
    class Wrong(LastValue):
        def forecast(self, past, horizon):
            return super().forecast(past, horizon)[:, :1]

    with pytest.raises(ValueError, match="Wrong returned shape"):
        forecast_at(Wrong(), make_trace(), 50, 5)


def test_no_origin_and_no_horizon_are_refused(make_trace):
    for cutoffs, horizons in (([], [5]), ([50], []), ([50], [0])):
        with pytest.raises(ValueError, match="cutoffs and horizons"):
            backtest(LastValue(), make_trace(), cutoffs, horizons)


def test_a_long_trace_is_fast(make_trace):
    trace = make_trace(num_steps=5000, num_layers=4, num_experts=32)
    cutoffs = rolling_origins(trace, first=1500, stride=100, horizon=2000)[:15]
    started = time.perf_counter()
    backtest(SlidingWindow(100), trace, cutoffs, [100, 500, 1000, 2000])
    assert time.perf_counter() - started < 4.0  # about 0.4 s on an idle core


def test_everything_but_the_lstm_does_without_torch():
    modules = sorted(path.stem for path in (Path(__file__).parents[2] / "predictors").glob("*.py"))
    imports = "; ".join(f"import predictors.{name}" for name in modules if name not in ("__init__", "lstm"))
    code = f"import sys; {imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
