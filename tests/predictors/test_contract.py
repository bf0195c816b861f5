"""Every YAML in conf/predictor keeps the contract: a new file is tested without a new test."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from predictors.base import Predictor

CONF = Path(__file__).parents[2] / "conf" / "predictor"
FILES = sorted(CONF.glob("*.yaml"))
TOY_BUDGET = {"num_steps": 5, "hidden_sizes": [8], "learning_rates": [0.001]}
TOY_SAMPLE = {"num_series": 1, "max_history": 60}  # AutoARIMA takes a second a series of 300 steps
L, E = 2, 8

pytestmark = pytest.mark.filterwarnings("ignore:.* found no fit:RuntimeWarning")


def ready(path: Path, other_run) -> Predictor:
    """The predictor of a file, fitted on another run where it wants to be."""
    config = OmegaConf.load(path)
    if config["_target_"].endswith(("Arima", "Statistical")):
        pytest.importorskip("statsforecast", reason="statsforecast's models need the extra [forecast]")
    if config["_target_"].endswith("Statistical"):
        config.update(TOY_SAMPLE)
    if "num_steps" in config:
        config.update(TOY_BUDGET)
    predictor = instantiate(config)
    if hasattr(predictor, "fit"):
        predictor.fit([other_run])
    return predictor


def assert_proportions(forecast: np.ndarray, horizon: int) -> None:
    assert forecast.shape == (horizon, L, E)
    known = ~np.isnan(forecast)
    assert known.any()
    assert (known == known[:1]).all(), "a series is forecast at every step or at none"
    assert (forecast[known] >= 0).all()
    assert (forecast[known] <= 1 + 1e-9).all()
    whole = known.all(-1)
    np.testing.assert_allclose(forecast.sum(-1)[whole], 1.0, atol=1e-9)


def test_there_are_predictors():
    assert {"sw_avg_100", "arima", "lstm"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestContract:
    def test_says_what_it_is(self, path):
        assert path.read_text().startswith("# ")

    def test_gives_proportions_and_leaves_the_past_alone(self, path, make_trace):
        past = make_trace(seed=1).tokens
        past.flags.writeable = False
        predictor = ready(path, make_trace(seed=2))
        assert isinstance(predictor, Predictor)
        for horizon in (1, 37):
            assert_proportions(predictor.forecast(past, horizon), horizon)

    def test_is_deterministic(self, path, make_trace):
        past = make_trace(seed=1).tokens
        first, second = (ready(path, make_trace(seed=2)).forecast(past, 20) for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_does_not_depend_on_earlier_calls(self, path, make_trace):
        predictor = ready(path, make_trace(seed=2))
        past = make_trace(seed=1).tokens
        first = predictor.forecast(past, 20)
        predictor.forecast(make_trace(seed=3).tokens, 5)
        np.testing.assert_array_equal(first, predictor.forecast(past, 20))

    def test_forecasts_a_constant_series_as_constant(self, path, as_trace):
        if not any(OmegaConf.load(path).get("anchored", [True])):
            pytest.skip("a free network, trained for five steps here, only approaches a constant")
        counts = np.array([[10, 20, 30, 40, 50, 60, 70, 80], [45] * 8])
        constant = as_trace(np.repeat(counts[None], 200, axis=0))
        forecast = ready(path, constant).forecast(constant.tokens, 50)
        expected = np.repeat(constant.proportion[:1], 50, axis=0)
        known = ~np.isnan(forecast)
        np.testing.assert_allclose(forecast[known], expected[known], rtol=1e-2)

    @pytest.mark.parametrize("known_steps", [1, 2, 3, 9])
    def test_manages_with_a_short_past(self, path, known_steps, make_trace):
        past = make_trace(seed=1).tokens[:known_steps]
        assert_proportions(ready(path, make_trace(seed=2)).forecast(past, 12), 12)

    def test_manages_with_zero_loads(self, path, make_trace):
        past = make_trace(seed=1).tokens.copy()
        past[:, 0, 3] = 0  # an expert that nobody uses
        past[150:160, 1] = 0  # steps in which a layer routes nothing
        assert_proportions(ready(path, make_trace(seed=2)).forecast(past, 12), 12)

    def test_refuses_an_empty_past_and_an_empty_horizon(self, path, make_trace):
        past = make_trace(seed=1).tokens
        predictor = ready(path, make_trace(seed=2))
        with pytest.raises(ValueError, match="past"):
            predictor.forecast(past[:0], 5)
        with pytest.raises(ValueError, match="horizon"):
            predictor.forecast(past, 0)


@pytest.mark.parametrize("partner", ["sw_avg_100", "hedge"])
def test_a_sampled_partner_is_its_namesake_on_the_series_of_arima(partner, make_trace):
    past = make_trace(seed=1).tokens
    arima, sampled, whole = (
        ready(CONF / f"{name}.yaml", make_trace(seed=2)).forecast(past, 3)
        for name in ("arima", f"{partner}_sampled", partner)
    )
    np.testing.assert_array_equal(np.isnan(arima), np.isnan(sampled))
    known = ~np.isnan(sampled)
    np.testing.assert_array_equal(sampled[known], whole[known])
