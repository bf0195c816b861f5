"""The sampling floors against numbers known beforehand, against routed tokens, and against each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.floor import empirical_floor, multinomial_floor, realised_mean
from predictors.metrics import METRICS, errors_by_horizon
from predictors.windows import SlidingWindow

PAPER_BATCH = 256 * 2048


@pytest.mark.parametrize(
    ("num_experts", "sequence", "top_k", "percent"),
    [(128, 2048, 1, 1.242), (16, 2048, 1, 0.427), (128, 2048, 2, 0.875), (128, 1024, 1, 1.756)],
)
def test_floor_at_the_papers_batch(num_experts, sequence, top_k, percent):
    """sqrt(2 / pi) sqrt((1 - K p) / (T K p)): mean absolute deviation of a normal, relative to its mean."""
    uniform = np.full((16, num_experts), 1 / num_experts)
    floor = multinomial_floor(uniform, 256 * sequence, top_k, horizons=[1], num_draws=200)
    assert 100 * floor["relative_error"].mean() == pytest.approx(percent, rel=0.02)


@pytest.mark.parametrize(
    ("num_experts", "window", "percent"), [(128, 100, 1.25), (128, 10, 1.30), (16, 100, 0.43), (16, 10, 0.45)]
)
def test_sw_avg_adds_its_own_noise_to_the_floor(num_experts, window, percent):
    """A window of w steps misses by sqrt(1 + 1 / w) floors: 1.25-1.30 % and 0.43-0.45 % at that batch."""
    rng = np.random.default_rng(window)
    counts = rng.multinomial(PAPER_BATCH, np.full(num_experts, 1 / num_experts), size=(window + 1, 400))
    errors = errors_by_horizon(SlidingWindow(window).forecast(counts[:window], 1), counts[window:], [1])
    assert 100 * errors["relative_error"].mean() == pytest.approx(percent, rel=0.02)


def routed_counts(log_weight: np.ndarray, tokens: int, top_k: int, num_steps: int, seed: int) -> np.ndarray:
    """(S, 1, E) counts of independent tokens that each draw K distinct experts (Gumbel top-k)."""
    rng = np.random.default_rng(seed)
    keys = log_weight + rng.gumbel(size=(num_steps, tokens, len(log_weight)))
    chosen = np.argsort(-keys, axis=-1)[..., :top_k].reshape(num_steps, -1)
    return np.stack([np.bincount(step, minlength=len(log_weight)) for step in chosen])[:, None]


@pytest.mark.parametrize("top_k", [1, 2])
def test_multinomial_floor_is_what_routed_tokens_give(top_k):
    log_weight = np.linspace(-1, 1, 8)
    share = realised_mean(routed_counts(log_weight, 2000, top_k, 200, seed=1))
    future = routed_counts(log_weight, 500, top_k, 400, seed=2)
    found = errors_by_horizon(np.repeat(share[None], 400, axis=0), future, [400])
    floor = multinomial_floor(share, 500, top_k, [400], num_draws=2000)
    for name in ("relative_error", "total_variation"):
        assert found[name].item() == pytest.approx(floor[name].item(), rel=0.03)


def test_floor_of_the_mean_is_what_simulated_horizons_give():
    share = np.random.default_rng(3).dirichlet(np.full(16, 5.0), size=2)
    rng = np.random.default_rng(4)
    found = np.zeros((2, 2))
    for _ in range(200):
        future = rng.multinomial(300, share, size=(20, len(share)))
        forecast = np.repeat(share[None], 20, axis=0)
        found += errors_by_horizon(forecast, future, [1, 20])["relative_error_of_mean"] / 200
    floor = multinomial_floor(share, 300, 1, [1, 20], num_draws=2000)["relative_error_of_mean"]
    np.testing.assert_allclose(found, floor, rtol=0.1)


def test_both_floors_agree_on_independent_tokens():
    share = np.random.default_rng(5).dirichlet(np.full(16, 5.0), size=2)
    counts = np.random.default_rng(6).multinomial(4000, share, size=(300, len(share)))
    empirical, multinomial = (
        empirical_floor(counts, [1, 50]),
        multinomial_floor(share, 4000, 1, [1, 50], 2000),
    )
    for name in METRICS:
        np.testing.assert_allclose(empirical[name], multinomial[name], rtol=0.1, err_msg=name)


def test_few_batches_are_not_flattered_by_their_own_mean():
    rng = np.random.default_rng(7)
    share = np.full((1, 32), 1 / 32)
    three = [empirical_floor(rng.multinomial(8000, share, size=(3, len(share))), [1]) for _ in range(200)]
    found = np.mean([floor["total_variation"] for floor in three])
    assert found == pytest.approx(multinomial_floor(share, 8000, 1, [1], 2000)["total_variation"].item(), rel=0.02)


def test_the_empirical_floor_sees_tokens_that_come_in_groups():
    """Four copies of every token double the deviation; the multinomial floor cannot know."""
    share = np.full((1, 16), 1 / 16)
    counts = 4 * np.random.default_rng(8).multinomial(1000, share, size=(400, len(share)))
    ratio = empirical_floor(counts, [1])["total_variation"] / multinomial_floor(share, 4000, 1, [1])["total_variation"]
    assert ratio.item() == pytest.approx(2.0, rel=0.1)


@given(seed=st.integers(0, 999), factor=st.sampled_from([4, 16]))
def test_more_tokens_lower_the_floor_by_the_root(seed, factor):
    share = np.random.default_rng(seed).dirichlet(np.full(32, 5.0), size=1)
    few, many = (multinomial_floor(share, n, 1, [1], 300, seed) for n in (4000, 4000 * factor))
    ratio = few["total_variation"] / many["total_variation"]
    assert ratio.item() == pytest.approx(np.sqrt(factor), rel=0.15)


def test_mask_keeps_the_floor_of_the_sampled_series():
    share = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    series = np.array([[True, False, False, False], [True] * 4])
    counts = np.random.default_rng(9).multinomial(500, share, size=(400, len(share)))
    for whole, masked in (
        (multinomial_floor(share, 500, 1, [1, 9]), multinomial_floor(share, 500, 1, [1, 9], series=series)),
        (empirical_floor(counts, [1, 9]), empirical_floor(counts, [1, 9], series=series)),
    ):
        assert (masked["relative_error"][:, 0] < 0.6 * whole["relative_error"][:, 0]).all()  # the busy expert
        assert np.isnan(masked["total_variation"][:, 0]).all()
        for name in METRICS:
            np.testing.assert_array_equal(masked[name][:, 1], whole[name][:, 1])


def test_unused_experts_and_idle_layers():
    counts = np.array([[[5, 5, 0], [0, 0, 0]], [[6, 4, 0], [0, 0, 0]]])
    share = realised_mean(counts)
    np.testing.assert_allclose(share[0], [0.55, 0.45, 0])
    for floor in (multinomial_floor(share, 10, 1, [1, 2]), empirical_floor(counts, [1, 2])):
        assert all(np.isfinite(floor[name][:, 0]).all() for name in METRICS)
        assert all(np.isnan(floor[name][:, 1]).all() for name in METRICS)


def test_a_share_above_one_over_k_is_certain():
    floor = multinomial_floor(np.array([[0.6, 0.4, 0.0]]), 100, 2, [1])
    assert (
        floor["relative_error"].item()
        < multinomial_floor(np.array([[0.45, 0.4, 0.15]]), 100, 2, [1])["relative_error"].item()
    )


@pytest.mark.parametrize(("tokens", "top_k", "share"), [(0, 1, 0.5), (5, 0, 0.5), (5, 1, 1.5), (5, 1, -0.5)])
def test_wrong_arguments_are_refused(tokens, top_k, share):
    with pytest.raises(ValueError, match=r"got (0|1\.5|-0\.5)"):
        multinomial_floor(np.array([[share, 0.5]]), tokens, top_k, [1])


def test_an_empirical_floor_needs_batches_and_a_matching_mask():
    counts = np.ones((2, 1, 4), dtype=int)
    with pytest.raises(ValueError, match="1"):
        empirical_floor(counts[:1], [1])
    with pytest.raises(ValueError, match="0"):
        empirical_floor(counts, [0])
