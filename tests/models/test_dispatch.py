import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dispatch import LocalDispatcher
from models.experts import GroupedExperts, LoopExperts
from routers.base import Routing

E, D = 5, 8
DISPATCHER = LocalDispatcher()


def draw_routing(seed: int, num_tokens: int, top_k: int, absent: float = 0.2) -> Routing:
    """K distinct experts a token, a share of them -1 with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, E, generator=generator)
    chosen = scores.topk(top_k).indices
    chosen = torch.where(torch.rand(chosen.shape, generator=generator) < absent, -1, chosen)
    return Routing(scores, torch.rand(chosen.shape, generator=generator) * (chosen >= 0), chosen)


def tokens_for(num_tokens: int) -> torch.Tensor:
    return torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(7))


cases = st.tuples(st.integers(0, 10_000), st.integers(0, 20), st.integers(1, E), st.sampled_from([0.0, 0.3, 1.0]))


@given(cases)
def test_rows_are_the_routed_pairs_by_expert_then_token(case):
    routing = draw_routing(*case)
    x_TD = tokens_for(case[1])
    rows, tokens_per_expert, plan = DISPATCHER.dispatch(x_TD, routing)
    chosen = routing.expert_indices.tolist()
    expected = [token for expert in range(E) for token, experts in enumerate(chosen) if expert in experts]
    assert plan.token.tolist() == expected
    assert torch.equal(rows, x_TD[expected])
    assert tokens_per_expert.tolist() == [sum(expert in experts for experts in chosen) for expert in range(E)]


@given(cases)
def test_identity_experts_give_the_weighted_sum(case):
    routing = draw_routing(*case)
    x_TD = tokens_for(case[1])
    rows, _, plan = DISPATCHER.dispatch(x_TD, routing)
    expected = x_TD * routing.expert_weights.sum(-1, keepdim=True)
    torch.testing.assert_close(DISPATCHER.combine(rows, plan), expected)


@pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts])
@pytest.mark.parametrize("top_k", [1, 3, E])
def test_equals_all_experts_for_all_tokens(backend, top_k):
    torch.manual_seed(0)
    experts, x_TD, routing = backend(E, D, 12, init_std=0.5), tokens_for(20), draw_routing(1, 20, top_k)
    rows, tokens_per_expert, plan = DISPATCHER.dispatch(x_TD, routing)
    found = DISPATCHER.combine(experts(rows, tokens_per_expert), plan)

    everything = experts(x_TD.repeat(E, 1), torch.full((E,), 20)).view(E, 20, D)
    weights_TE = torch.zeros(20, E + 1)
    # column -1 takes the absent choices, whose weight is 0
    weights_TE.scatter_(1, routing.expert_indices % (E + 1), routing.expert_weights)
    torch.testing.assert_close(found, torch.einsum("etd,te->td", everything, weights_TE[:, :E]))


def test_tokens_without_experts_get_zeros():
    routing = draw_routing(0, 6, 2, absent=1.0)
    rows, tokens_per_expert, plan = DISPATCHER.dispatch(tokens_for(6), routing)
    assert rows.shape == (0, D)
    assert torch.equal(tokens_per_expert, torch.zeros(E, dtype=torch.int64))
    assert torch.equal(DISPATCHER.combine(rows, plan), torch.zeros(6, D))


def test_half_precision_stays_half():
    rows, _, plan = DISPATCHER.dispatch(tokens_for(6).bfloat16(), draw_routing(0, 6, 2))
    assert DISPATCHER.combine(rows, plan).dtype == torch.bfloat16


def test_gradients_reach_tokens_and_weights(make_routing):
    x_TD = tokens_for(4).requires_grad_()
    routing = make_routing(torch.tensor([[0, 1], [2, -1], [3, 4], [-1, -1]]), E)
    weights = routing.expert_weights.requires_grad_()
    rows, _, plan = DISPATCHER.dispatch(x_TD, routing)
    DISPATCHER.combine(rows, plan).sum().backward()
    torch.testing.assert_close(x_TD.grad, weights.detach().sum(-1, keepdim=True).expand(4, D))
    torch.testing.assert_close(weights.grad, x_TD.detach().sum(-1, keepdim=True) * (routing.expert_indices >= 0))
