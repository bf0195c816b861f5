"""Synthetic workloads: each has the shape that it is named for, and a seed gives the same tokens again."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from traces.synthetic.popularity import Burst, Drift, ExpertSet, LogNormal, OneDevice, RotatingSet, SpreadSet, Zipf
from traces.synthetic.size import Size
from traces.synthetic.workload import Workload

FILES = sorted((Path(__file__).parents[2] / "conf/workload").glob("*.yaml"))
SIZE = Size(num_steps=60, num_layers=3, num_experts=16, tokens_per_step=256, top_k=2, num_devices=4)
DEVICES = np.arange(16).reshape(4, 4)


def named(name: str, size: Size = SIZE, seed: int = 0) -> Workload:
    path = next(path for path in FILES if path.stem == name)
    return instantiate(OmegaConf.load(path))(size=size, seed=seed)


def share_of(name: str, seed: int = 0) -> np.ndarray:
    """Observed shares (L, E) over all steps."""
    return named(name, seed=seed).traces()[0].tokens.sum(0) / (60 * 256 * 2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestContract:
    def test_traces_are_whole(self, path):
        workload = named(path.stem)
        assert workload.name == path.stem
        loads, routing = workload.traces(routing_every=7)
        assert loads.tokens.shape == (60, 3, 16)
        np.testing.assert_array_equal(loads.tokens.sum(-1), 256 * 2)
        assert routing is not None
        assert routing.step.tolist() == list(range(0, 60, 7))
        assert routing.expert_indices.shape == (9, 3, 256, 2)
        chosen = np.sort(routing.expert_indices, axis=-1)
        assert (chosen[..., 0] >= 0).all()
        assert (chosen[..., 1:] > chosen[..., :-1]).all(), "a token has an expert twice"
        np.testing.assert_array_equal(loads.tokens[::7], routing.loads())
        assert loads.source == routing.source
        assert loads.source.model == f"synthetic/{path.stem}"
        assert loads.source.data_fingerprint == "none"

    def test_a_seed_repeats_and_another_differs(self, path):
        first, again = (named(path.stem).traces(routing_every=20) for _ in range(2))
        other = named(path.stem, seed=1).traces(routing_every=20)
        np.testing.assert_array_equal(first[0].tokens, again[0].tokens)
        np.testing.assert_array_equal(first[1].expert_indices, again[1].expert_indices)
        assert (first[0].tokens != other[0].tokens).any()
        assert (first[1].expert_indices != other[1].expert_indices).any()
        assert first[0].source.fingerprint() != other[0].source.fingerprint()

    def test_sampling_more_steps_changes_no_other(self, path):
        without, _ = named(path.stem).traces()
        some, sampled = named(path.stem).traces(routing_every=20)
        _, more = named(path.stem).traces(routing_every=10)
        unsampled = np.arange(60) % 20 > 0
        np.testing.assert_array_equal(without.tokens[unsampled], some.tokens[unsampled])
        np.testing.assert_array_equal(sampled.expert_indices, more.expert_indices[::2])

    def test_tokens_follow_the_shares_that_a_perfect_forecast_says(self, path):
        workload = named(path.stem)
        share, observed = workload.proportion(), workload.traces(routing_every=2)[0].proportion
        assert share.shape == (60, 3, 16)
        np.testing.assert_allclose(share.sum(-1), 1.0)
        # every count is Binomial(T, K p): here over all steps, in standard deviations
        deviation = np.sqrt((2 * share * (1 - 2 * share) / 256).sum(0)) / 2
        assert (np.abs((observed - share).sum(0)) <= 5 * deviation + 1e-4).all()

    @pytest.mark.parametrize("size", [Size(4, 1, 8, 16, 3, 3), Size(4, 2, 256, 64, 8, 64)])
    def test_other_sizes(self, path, size):
        loads, _ = named(path.stem, size).traces(routing_every=3)
        np.testing.assert_array_equal(loads.tokens.sum(-1), size.tokens_per_step * size.top_k)


def test_balanced_has_no_favourite():
    np.testing.assert_array_equal(named("balanced").proportion(), 1 / 16)


def test_two_hot_experts_have_half_of_the_tokens():
    share_LE = share_of("hot_experts")
    np.testing.assert_allclose(np.sort(share_LE, axis=-1)[:, -2:], 0.25, atol=0.02)
    assert len(np.unique(np.sort(np.argsort(share_LE, axis=-1)[:, -2:], axis=-1), axis=0)) > 1


def test_the_hot_rank_has_most_load_in_every_layer():
    for seed in range(4):
        device_LG = share_of("hot_rank", seed)[:, DEVICES].sum(-1)
        assert len(set(device_LG.argmax(-1).tolist())) == 1
        np.testing.assert_allclose(device_LG.max(-1), 0.5, atol=0.02)


def test_spread_hot_experts_are_as_hot_but_on_different_devices():
    share_LE, hot_rank_LE = share_of("spread_hot"), share_of("hot_rank")
    np.testing.assert_allclose(np.sort(share_LE), np.sort(hot_rank_LE), atol=0.02)
    np.testing.assert_allclose(share_LE[:, DEVICES].sum(-1), 0.25, atol=0.02)
    hot = np.argsort(share_LE, axis=-1)[:, -4:]
    np.testing.assert_array_equal(np.sort(hot // 4, axis=-1), np.tile(np.arange(4), (3, 1)))


def test_one_expert_gets_no_token():
    tokens = named("zero_expert").traces()[0].tokens
    np.testing.assert_array_equal((tokens.sum(0) == 0).sum(-1), 1)
    assert (share_of("zero_expert") > 0.05).sum() == 3 * 15


def test_one_rank_gets_no_token():
    device_LG = share_of("zero_rank")[:, DEVICES].sum(-1)
    np.testing.assert_array_equal((device_LG == 0).sum(-1), 1)
    assert len(set(device_LG.argmin(-1).tolist())) == 1


def test_ragged_sources_start_uneven_numbers_of_tokens():
    assert np.bincount(named("balanced").source_device()).tolist() == [64, 64, 64, 64]
    started = np.bincount(named("ragged_sources").source_device())
    # 256 in proportion to 1, 1/2, 1/3, 1/4
    assert started.tolist() == [123, 61, 41, 31]
    np.testing.assert_array_equal(named("ragged_sources").proportion(), 1 / 16)


def test_the_hotspot_rotates_through_all_experts():
    size = Size(1600, 2, 16, 64, 2)
    share_SLE = named("rotating_hotspot", size).proportion()
    hot = np.argsort(share_SLE, axis=-1)[..., -2:]
    np.testing.assert_array_equal(np.diff(hot, axis=0).any(axis=(1, 2)).nonzero()[0] + 1, np.arange(200, 1600, 200))
    visited = hot[::200].transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(np.sort(visited, axis=-1), np.tile(np.arange(16), (2, 1)))


def test_bursts_come_and_go():
    size = Size(4000, 3, 16, 64, 2)
    share_SLE = Burst(rate=0.005, length=20, share=0.3)(size, np.random.default_rng(0))
    bursting_SL = share_SLE.max(-1) > 0.2
    np.testing.assert_allclose(share_SLE[bursting_SL].max(-1), 0.3)
    np.testing.assert_allclose(share_SLE[~bursting_SL], 1 / 16)
    # a step is quiet when none of its last 20 steps started a burst
    assert bursting_SL.mean() == pytest.approx(1 - 0.995**20, abs=0.03)
    always = Burst(rate=1.0, length=5, share=0.3)(size, np.random.default_rng(0))
    assert (always.max(-1) > 0.2).all()
    assert not (Burst(rate=0.0, length=5, share=0.3)(size, np.random.default_rng(0)) > 0.2).any()


def test_a_burst_lasts_its_length():
    size = Size(2000, 1, 16, 64, 2)
    share_SE = Burst(rate=0.001, length=20, share=0.3)(size, np.random.default_rng(3))[:, 0]
    bursting = (share_SE.max(-1) > 0.2).astype(int)
    starts, ends = (np.flatnonzero(np.diff(bursting) == sign) for sign in (1, -1))
    assert len(starts) == len(ends) > 0
    np.testing.assert_array_equal(ends - starts, 20)


def test_zipf_shares_fall_with_the_rank():
    share = np.sort(Zipf(1.0)(SIZE, np.random.default_rng(0)), axis=-1)[..., ::-1]
    np.testing.assert_allclose(share, np.broadcast_to(share[..., :1] / np.arange(1, 17), share.shape))


def test_log_shares_have_the_deviation_they_are_named_for():
    many = Size(1, 400, 64, 64, 2)
    for popularity in (LogNormal(0.7), Drift(0.7, 10.0)):
        logarithm = np.log(popularity(many, np.random.default_rng(0)))
        assert logarithm.std(-1).mean() == pytest.approx(0.7, rel=0.02)


def test_half_of_a_drift_s_deviation_is_left_after_its_half_life():
    share_SLE = Drift(0.5, half_life=50.0)(Size(4000, 8, 32, 64, 2), np.random.default_rng(0))
    logarithm = np.log(share_SLE)
    deviation = logarithm - logarithm.mean((0, 2), keepdims=True)
    for lag, kept in ((1, 0.5 ** (1 / 50)), (50, 0.5), (100, 0.25)):
        correlation = np.mean(deviation[lag:] * deviation[:-lag]) / np.mean(deviation**2)
        assert correlation == pytest.approx(kept, abs=0.06)
    # stationary: the spread neither grows nor shrinks
    assert logarithm[:2000].std(-1).mean() == pytest.approx(logarithm[2000:].std(-1).mean(), rel=0.05)


@settings(max_examples=25)
@given(
    st.builds(
        Size,
        num_steps=st.integers(1, 5),
        num_layers=st.integers(1, 3),
        num_experts=st.integers(6, 12),
        tokens_per_step=st.integers(1, 20),
        top_k=st.integers(1, 3),
        num_devices=st.integers(2, 6),
    ),
    st.sampled_from(
        (
            Zipf(3.0),
            LogNormal(5.0),
            Drift(2.0, 3.0),
            OneDevice(0.9),
            SpreadSet(1.0),
            ExpertSet(4, 1.0),
            RotatingSet(2, 0.7, 2),
            Burst(0.5, 2, 1.0),
        )
    ),
    st.integers(0, 2**32),
)
def test_any_size_gives_whole_traces_or_says_why_not(size, popularity, seed):
    workload = Workload("any", popularity, size, seed)
    share = popularity(size, np.random.default_rng([seed, 0]))
    if (share > 0).sum(-1).min() <= size.top_k:
        with pytest.raises(ValueError, match="experts with a share"):
            workload.traces()
        return
    loads, routing = workload.traces(routing_every=2)
    np.testing.assert_array_equal(loads.tokens.sum(-1), size.tokens_per_step * size.top_k)
    assert routing is not None
    np.testing.assert_array_equal(routing.loads(), loads.tokens[::2])
    assert workload.source_device().shape == (size.tokens_per_step,)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Size(0, 1, 4, 8, 2), "num_steps must be at least 1, got 0"),
        (lambda: Size(1, 1, 4, 8, 4), "top_k must be below the 4 experts, got 4"),
        (lambda: Size(1, 1, 4, 8, 2, 5), "5 devices for 4 experts"),
        (lambda: Zipf(-1.0), "exponent must not be negative, got -1.0"),
        (lambda: LogNormal(-1.0), "sigma must not be negative"),
        (lambda: Drift(1.0, 0.0), "half_life must be positive"),
        (lambda: ExpertSet(2, 1.5), r"share must lie in 0\.\.1, got 1.5"),
        (lambda: Burst(2.0, 5, 0.5), r"rate must lie in 0\.\.1"),
        (lambda: Burst(0.5, 0, 0.5), "length must be at least 1"),
        (lambda: RotatingSet(2, 0.5, 0), "period must be at least 1"),
        (lambda: Workload("x", Zipf(1.0), SIZE, -1), "seed must not be negative"),
        (lambda: Workload("x", ExpertSet(16, 0.5), SIZE, 0).traces(), r"1\.\.15 experts, got 16"),
        (lambda: Workload("x", RotatingSet(0, 0.5, 2), SIZE, 0).traces(), r"1\.\.15 experts, got 0"),
        (lambda: Workload("x", OneDevice(0.5), Size(1, 1, 4, 8, 2), 0).traces(), "at least 2 devices, got 1"),
        (lambda: Workload("x", SpreadSet(0.5), Size(1, 1, 4, 8, 2), 0).traces(), "at least 2 devices, got 1"),
        (lambda: Workload("x", Zipf(1.0), SIZE, 0).traces(routing_every=0), "routing_every must be at least 1"),
        (lambda: Workload("x", ExpertSet(2, 1.0), SIZE, 0).traces(), "more than 2 experts with a share, got 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
