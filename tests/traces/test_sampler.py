"""Drawing K distinct experts a token: the walk over experts against all K-sets written out."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.synthetic.sampler import chances, draw_choices, draw_counts, expected, feasible


@st.composite
def shares(draw):
    """Any K below E, and shares (P, L, E) from even to extreme, some of them zero."""
    num_experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, num_experts - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = np.exp(draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0, 20.0])) * rng.normal(size=(2, 3, num_experts)))
    weight[..., : draw(st.integers(0, num_experts - top_k - 1))] = 0.0
    return rng.permuted(weight / weight.sum(-1, keepdims=True), axis=-1), top_k


def set_probability(walk_Ek: np.ndarray, experts: tuple[int, ...]) -> float:
    """Chance that a token takes exactly these experts, by going along the walk."""
    left, probability = len(experts), 1.0
    for expert, chance in enumerate(walk_Ek):
        probability *= chance[left] if expert in experts else 1 - chance[left]
        left -= expert in experts
    return probability


def all_sets(walk_Ek: np.ndarray) -> dict[tuple[int, ...], float]:
    num_experts, top_k = walk_Ek.shape[0], walk_Ek.shape[1] - 1
    return {experts: set_probability(walk_Ek, experts) for experts in combinations(range(num_experts), top_k)}


@settings(max_examples=60)
@given(shares())
def test_every_expert_gets_its_share(drawn):
    asked, top_k = drawn
    share = feasible(asked, top_k)
    walk = chances(share, top_k)
    np.testing.assert_allclose(expected(walk), share, atol=1e-6)
    probability = all_sets(walk[..., 1, 2])
    assert sum(probability.values()) == pytest.approx(1.0)
    for expert, wanted in enumerate(share[1, 2]):
        found = sum(chance for experts, chance in probability.items() if expert in experts)
        assert found / top_k == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=30)
@given(shares())
def test_a_set_is_as_likely_as_the_product_of_its_odds(drawn):
    asked, top_k = drawn
    walk = chances(feasible(asked, top_k), top_k)[..., 0, 0]
    probability = all_sets(walk)
    num_experts = len(walk)
    # exchanging e for f multiplies the probability by the same number, whatever the other experts are
    for e, f in combinations(range(num_experts), 2):
        others = [experts for experts in combinations(range(num_experts), top_k - 1) if not {e, f} & set(experts)]
        with_e, with_f = (
            np.array([probability[tuple(sorted((*experts, one)))] for experts in others]) for one in (e, f)
        )
        np.testing.assert_allclose(with_e * with_f.sum(), with_f * with_e.sum(), atol=1e-7)


@settings(max_examples=60)
@given(shares())
def test_what_is_feasible_is_left_alone_and_the_rest_is_cut(drawn):
    asked, top_k = drawn
    share = feasible(asked, top_k)
    np.testing.assert_allclose(share.sum(-1), 1.0)
    assert share.max() < 1 / top_k
    np.testing.assert_array_equal(share == 0, asked == 0)
    np.testing.assert_allclose(feasible(share, top_k), share, rtol=1e-9)
    # nothing that was larger becomes smaller than what it exceeded
    order = np.argsort(asked, axis=-1)
    assert (np.diff(np.take_along_axis(share, order, axis=-1)) >= -1e-12).all()
    small = asked.max(-1) < 0.9 / top_k
    np.testing.assert_allclose(share[small], asked[small], rtol=1e-12)


def test_tokens_are_drawn_as_often_as_their_set_is_likely():
    share = feasible(np.array([[0.45, 0.25, 0.15, 0.1, 0.05], [0.2, 0.2, 0.2, 0.0, 0.4]]), 2)
    walk = chances(share, 2)
    num_tokens = 200_000
    chosen_LTK = draw_choices(walk, num_tokens, np.random.default_rng(0))
    for layer, chosen_TK in enumerate(chosen_LTK):
        experts, count = np.unique(chosen_TK, axis=0, return_counts=True)
        found = dict(zip(map(tuple, experts.tolist()), count.tolist(), strict=True))
        for wanted, probability in all_sets(walk[..., layer]).items():
            deviation = np.sqrt(num_tokens * probability * (1 - probability))
            assert abs(found.pop(wanted, 0) - num_tokens * probability) <= 5 * deviation
        assert not found


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_counts_without_tokens_follow_the_law_of_counted_tokens(top_k):
    num_tokens, num_steps = 40, 20_000
    share = feasible(np.array([0.5, 0.2, 0.15, 0.1, 0.05]), top_k)
    walk = chances(share, top_k)
    probability = all_sets(walk)
    member = np.array([[expert in experts for expert in range(5)] for experts in probability], float)
    once = np.array(list(probability.values()))
    mean_E = once @ member
    covariance_EE = (member.T * once) @ member - np.outer(mean_E, mean_E)
    steps = np.broadcast_to(walk[..., None], (*walk.shape, num_steps))
    counts_SE = draw_counts(steps, num_tokens, np.random.default_rng(1))
    np.testing.assert_array_equal(counts_SE.sum(-1), num_tokens * top_k)
    error_E = np.sqrt(num_tokens * np.diag(covariance_EE) / num_steps)
    assert (np.abs(counts_SE.mean(0) - num_tokens * mean_E) < 5 * error_E).all()
    np.testing.assert_allclose(np.cov(counts_SE.T), num_tokens * covariance_EE, atol=0.05 * num_tokens * 0.25)
    # and a single token's count is a draw of a set
    single = draw_counts(steps, 1, np.random.default_rng(2))
    found = np.array([(single == row).all(-1).mean() for row in member])
    assert (np.abs(found - once) < 5 * np.sqrt(once / num_steps)).all()


@pytest.mark.parametrize(
    ("proportion", "reason"),
    [([0.5, 0.6, 0.1], "must sum to 1"), ([1.5, -0.5, 0.0], "must not be negative"), ([0.5, 0.5, 0.0], "got 2")],
)
def test_shares_that_no_draw_can_have_are_refused(proportion, reason):
    with pytest.raises(ValueError, match=reason):
        feasible(np.array(proportion), 2)
