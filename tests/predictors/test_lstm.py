"""The LSTM: what it is fed, its equal budget, and that it leaves torch as it found it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from predictors.lstm import Candidate, Lstm
from predictors.metrics import errors_by_horizon
from predictors.segments import future_segments, join, past_bins, running_total, usable_knots
from predictors.windows import SlidingWindow

CONF = Path(__file__).parents[2] / "conf" / "predictor"
TOY = {"learning_rates": [1e-3], "hidden_sizes": [8], "num_steps": 5, "num_bins": 6, "bin_steps": 5}


@given(origin=st.integers(1, 40), num_bins=st.integers(1, 6), bin_steps=st.integers(1, 9), seed=st.integers(0, 9))
def test_bins_equal_the_slow_means(origin, num_bins, bin_steps, seed):
    run = np.random.default_rng(seed).random((40, 2, 3))
    found = past_bins(running_total(run), np.array([origin]), num_bins, bin_steps)[0]
    edges = [max(origin - bin_steps * i, 0) for i in range(num_bins, -1, -1)]
    means = [run[a:b].mean(0) if b > a else None for a, b in pairwise(edges)]
    first = next(mean for mean in means if mean is not None)
    np.testing.assert_allclose(found, [first if mean is None else mean for mean in means])


def test_segments_equal_the_slow_means_and_stop_at_the_end():
    run = np.random.default_rng(0).random((30, 1, 2))
    found = future_segments(running_total(run), np.array([4, 18]), knots=[1, 2, 5, 10], end=25)
    np.testing.assert_allclose(found[0, 2], run[6:9].mean(0))
    np.testing.assert_allclose(found[1, 0], run[18])
    assert np.isnan(found[1, 3]).all()
    assert np.isfinite(found[0]).all()


def test_join_passes_through_the_centres_and_holds_the_ends():
    line = join(np.array([[[0.0]], [[3.0]], [[6.0]]]), knots=[1, 3, 9], horizon=12)[:, 0, 0]
    assert line[0] == 0.0  # the first segment is step 1 alone
    assert (line[1], line[2]) == (2.0, pytest.approx(3.0 + 3 * 0.5 / 4))  # second centre 2.5, third 6.5
    np.testing.assert_array_equal(line[6:], 6.0)
    np.testing.assert_array_equal(join(np.ones((1, 1, 1)), [1], 3), np.ones((3, 1, 1)))


def test_knots_stay_within_half_the_longest_run():
    assert usable_knots(5000)[-1] == 2000
    assert usable_knots(250)[-1] == 100
    assert usable_knots(1) == (1,)


def test_untrained_and_anchored_it_is_the_recent_mean(make_trace):
    lstm = Lstm(**TOY | {"learning_rates": [1e-12]}, anchored=[True], anchor_steps=20)
    lstm.fit([make_trace(seed=1)])
    past = make_trace(seed=2).tokens
    expected = SlidingWindow(20).forecast(past, 1)[0]
    np.testing.assert_allclose(lstm.forecast(past, 30), np.repeat(expected[None], 30, axis=0), rtol=1e-4)


def relaxing_run(as_trace, seed: int):
    """Loads that start uneven and relax to uniform with a time constant of 150 steps."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.0, (1, 2, 8)) * np.exp(-np.arange(600) / 150)[:, None, None]
    return as_trace(rng.multinomial(4096, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)))


def test_it_learns_from_other_runs_what_a_window_cannot_know(as_trace):
    runs = [relaxing_run(as_trace, seed) for seed in range(4)]
    lstm = Lstm([5e-3], [32], [True], num_steps=200, num_bins=8, anchor_steps=20, validation_share=0.2)
    lstm.fit(runs[:3])
    past, future = runs[3].tokens[:80], runs[3].tokens[80:280]
    learned, window = (
        errors_by_horizon(p.forecast(past, 200), future, [200])["total_variation"].mean()
        for p in (lstm, SlidingWindow(20))
    )
    assert learned < 0.7 * window


def test_every_candidate_is_tried_and_the_best_is_kept(make_trace):
    lstm = Lstm(**TOY | {"learning_rates": [1e-3, 1e-2]}, anchored=[True, False])
    lstm.fit([make_trace(seed=1), make_trace(seed=2)])
    assert set(lstm.validation) == {Candidate(r, 8, a) for r in (1e-3, 1e-2) for a in (True, False)}
    assert lstm.chosen.anchored
    assert lstm.validation[lstm.chosen] == min(lstm.validation.values())


def test_both_configurations_have_the_same_budget():
    anchored, plain = (instantiate(OmegaConf.load(CONF / f"{name}.yaml")) for name in ("lstm", "lstm_plain"))
    assert {c.anchored for c in anchored.candidates} == {True}
    assert {c.anchored for c in plain.candidates} == {False}
    sizes, others = ([c.hidden_size for c in lstm.candidates] for lstm in (anchored, plain))
    assert sizes == others
    for name in ("num_steps", "batch_size", "num_bins", "bin_steps", "validation_share"):
        assert getattr(anchored, name) == getattr(plain, name)


@pytest.mark.parametrize(("anchored", "said"), [(True, "anchored"), (False, "unanchored")])
def test_a_candidate_can_be_read(anchored, said):
    assert str(Candidate(0.005, 128, anchored)) == f"lr 0.005, hidden 128, {said}"


@pytest.mark.parametrize("shuffle", [True, False])
def test_it_is_deterministic_and_leaves_torch_alone(shuffle, make_trace):
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    forecasts = []
    for seed in (3, 3, 4):
        lstm = Lstm(**TOY, seed=seed, anchored=[False], shuffle_experts=shuffle)
        lstm.fit([make_trace(seed=1)])
        forecasts.append(lstm.forecast(make_trace(seed=2).tokens, 40))
    np.testing.assert_array_equal(forecasts[0], forecasts[1])
    assert (forecasts[0] != forecasts[2]).any()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_before_fit_it_says_so(make_trace):
    with pytest.raises(ValueError, match="not been fitted"):
        Lstm().forecast(make_trace().tokens, 5)


def test_another_shape_is_refused_with_both_named(make_trace):
    lstm = Lstm(**TOY)
    lstm.fit([make_trace(seed=1)])
    with pytest.raises(ValueError, match=r"\(2, 8\).*\(3, 4\)"):
        lstm.forecast(make_trace(num_layers=3, num_experts=4).tokens, 5)
    with pytest.raises(ValueError, match="must agree"):
        lstm.fit([make_trace(), make_trace(num_experts=4)])


def test_no_run_and_too_short_a_run_are_refused(make_trace):
    with pytest.raises(ValueError, match="none"):
        Lstm(**TOY).fit([])
    with pytest.raises(ValueError, match="the shortest has 9"):
        Lstm(**TOY).fit([make_trace(num_steps=9)])
    Lstm(**TOY).fit([make_trace(num_steps=10)])


def test_a_wrong_budget_is_refused():
    with pytest.raises(ValueError, match="validation_share"):
        Lstm(validation_share=1.0)
    with pytest.raises(ValueError, match="num_steps"):
        Lstm(num_steps=0)
    with pytest.raises(ValueError, match="0 candidates"):
        Lstm(anchored=[])
