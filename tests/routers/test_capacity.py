from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers.base import Routing
from routers.capacity import capacity, drop_over_capacity

E = 5


def drop_slowly(chosen: list[list[int]], limit: int) -> list[list[int]]:
    """Serve all first choices in batch order, then all second ones, ...: an expert that is full refuses."""
    kept = [[-1] * len(token) for token in chosen]
    taken = Counter()
    for choice in range(len(chosen[0])):
        for token, experts in enumerate(chosen):
            expert = experts[choice]
            if expert >= 0 and taken[expert] < limit:
                taken[expert] += 1
                kept[token][choice] = expert
    return kept


def draw_choices(seed: int, num_tokens: int, top_k: int) -> torch.Tensor:
    """K distinct experts a token out of skewed scores, a few of them -1."""
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.rand(num_tokens, E, generator=generator) + torch.linspace(0, 1, E)
    chosen = skewed.topk(top_k).indices
    return torch.where(torch.rand(chosen.shape, generator=generator) < 0.1, -1, chosen)


@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, E), st.integers(1, 12))
def test_equals_the_slow_reference(seed, num_tokens, top_k, limit):
    chosen = draw_choices(seed, num_tokens, top_k)
    scores, weights = torch.rand(num_tokens, E), torch.rand(chosen.shape) * (chosen >= 0)
    kept = drop_over_capacity(Routing(scores, weights, chosen), limit)
    assert kept.expert_indices.tolist() == drop_slowly(chosen.tolist(), limit)
    present = kept.expert_indices >= 0
    assert torch.equal(kept.expert_weights, weights * present)
    assert kept.scores is scores


def test_first_choices_come_before_second_ones(make_routing):
    # token 0 takes expert 1 as its second choice, tokens 1 and 2 as their first
    kept = drop_over_capacity(make_routing(torch.tensor([[0, 1], [1, 2], [1, 3]]), E), limit=2)
    assert kept.expert_indices.tolist() == [[0, -1], [1, 2], [1, 3]]


def test_nothing_is_dropped_where_there_is_room(make_routing):
    routing = make_routing(draw_choices(0, 25, 3).clamp(min=0), E)
    kept = drop_over_capacity(routing, limit=3 * 25)
    assert all(torch.equal(a, b) for a, b in zip(kept, routing, strict=True))


def test_no_token_is_fine(make_routing):
    kept = drop_over_capacity(make_routing(torch.zeros(0, 2, dtype=torch.int64), E), limit=4)
    assert kept.expert_indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "factor", "expected"),
    [(64, 1, 8, 1.0, 8), (64, 2, 8, 1.25, 20), (65, 1, 8, 1.0, 9), (64, 1, 16, 0.5, 4), (0, 2, 8, 1.0, 4)],
)
def test_limit_is_the_formula(num_tokens, top_k, num_experts, factor, expected):
    assert capacity(num_tokens, top_k, num_experts, factor) == expected


def test_minimum_can_be_lowered():
    assert capacity(8, 1, 8, 1.0, minimum=1) == 1


@pytest.mark.parametrize("factor", [0.0, -1.25])
def test_factor_that_is_not_positive_is_named(factor):
    with pytest.raises(ValueError, match=f"positive, got {factor}"):
        capacity(64, 1, 8, factor)
