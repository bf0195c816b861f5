import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from models.dispatch import LocalDispatcher, LocalPlan
from models.experts import Experts, GroupedExperts, LoopExperts
from models.gated_experts import GatedExperts
from routers.base import Routing

E, D = 5, 8
# as on a CPU, and as where the host does not wait to learn how many choices are -1
DISPATCHERS = {"cut": LocalDispatcher(), "whole": LocalDispatcher(cut_absent=False)}
both = pytest.mark.parametrize("dispatcher", DISPATCHERS.values(), ids=DISPATCHERS)


def draw_routing(seed: int, num_tokens: int, top_k: int, absent: float = 0.2) -> Routing:
    """K distinct experts a token, a share of them -1 with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, E, generator=generator)
    chosen = scores.topk(top_k).indices
    chosen = torch.where(torch.rand(chosen.shape, generator=generator) < absent, -1, chosen)
    return Routing(scores, torch.rand(chosen.shape, generator=generator) * (chosen >= 0), chosen)


def tokens_for(num_tokens: int) -> torch.Tensor:
    return torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(7))


def slowly(experts: Experts, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
    """All experts for all tokens, weighted by what the routing says of each."""
    num_tokens = len(x_TD)
    everything = experts(x_TD.repeat(E, 1), torch.full((E,), num_tokens)).view(E, num_tokens, D)
    # column -1 takes the absent choices, whose weight is 0
    weights_TE = torch.zeros(num_tokens, E + 1).scatter(1, routing.expert_indices % (E + 1), routing.expert_weights)
    return torch.einsum("etd,te->td", everything, weights_TE[:, :E])


cases = st.tuples(st.integers(0, 10_000), st.integers(0, 20), st.integers(1, E), st.sampled_from([0.0, 0.3, 1.0]))


@both
@settings(max_examples=50)
@given(case=cases)
def test_rows_are_the_routed_pairs_by_expert_then_token(dispatcher, case):
    routing = draw_routing(*case)
    x_TD = tokens_for(case[1])
    rows, tokens_per_expert, plan = dispatcher.dispatch(x_TD, routing)
    chosen = routing.expert_indices.tolist()
    expected = [token for expert in range(E) for token, experts in enumerate(chosen) if expert in experts]
    assert plan.token[: len(expected)].tolist() == expected
    assert torch.equal(rows[: len(expected)], x_TD[expected])
    assert not rows[len(expected) :].any()
    assert tokens_per_expert.tolist() == [sum(expert in experts for experts in chosen) for expert in range(E)]
    assert (plan.rows_sent.tolist(), plan.metadata_bytes_sent.tolist()) == ([len(expected)], [0])


@settings(max_examples=50)
@given(cases)
def test_sizes_depend_on_the_choices_only_where_they_are_cut(case):
    routing, x_TD = draw_routing(*case), tokens_for(case[1])
    num_present = int((routing.expert_indices >= 0).sum())
    assert len(DISPATCHERS["cut"].dispatch(x_TD, routing)[0]) == num_present
    assert len(DISPATCHERS["whole"].dispatch(x_TD, routing)[0]) == routing.expert_indices.numel()


@both
@settings(max_examples=50)
@given(case=cases)
def test_identity_experts_give_the_weighted_sum(dispatcher, case):
    routing = draw_routing(*case)
    x_TD = tokens_for(case[1])
    rows, _, plan = dispatcher.dispatch(x_TD, routing)
    expected = x_TD * routing.expert_weights.sum(-1, keepdim=True)
    torch.testing.assert_close(dispatcher.combine(rows, plan), expected)


@both
@pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts, GatedExperts])
@pytest.mark.parametrize("top_k", [1, 3, E])
def test_outputs_and_gradients_equal_all_experts_for_all_tokens(dispatcher, backend, top_k):
    torch.manual_seed(0)
    experts, routing = backend(E, D, 12, init_std=0.5), draw_routing(1, 20, top_k)
    target = torch.randn(20, D)
    told = []
    for slow in (True, False):
        x_TD, weights = tokens_for(20).requires_grad_(), routing.expert_weights.clone().requires_grad_()
        routed = routing._replace(expert_weights=weights)
        if slow:
            found = slowly(experts, x_TD, routed)
        else:
            rows, tokens_per_expert, plan = dispatcher.dispatch(x_TD, routed)
            found = dispatcher.combine(experts(rows, tokens_per_expert), plan)
        gradients = torch.autograd.grad((found * target).sum(), [x_TD, weights, *experts.parameters()])
        # what a weight of an absent choice would change is nobody's business
        told.append([found, gradients[0], gradients[1] * (routing.expert_indices >= 0), *gradients[2:]])
    for expected, found in zip(*told, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Garbage(torch.autograd.Function):
    """Identity that leaves rows beyond the experts' undefined both ways, as a grouped product may: here, NaN."""

    @staticmethod
    def forward(ctx, x_ND: torch.Tensor, end: int) -> torch.Tensor:
        ctx.end = end
        return torch.cat([x_ND[:end], torch.full_like(x_ND[end:], torch.nan)])

    @staticmethod
    def backward(ctx, gradient_ND: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.cat([gradient_ND[: ctx.end], torch.full_like(gradient_ND[ctx.end :], torch.nan)]), None


@pytest.mark.parametrize("backend", [GroupedExperts, GatedExperts])
def test_the_host_never_waits_to_learn_what_was_routed(backend):
    def step(dispatcher: LocalDispatcher) -> torch.Tensor:
        # tensors without values: whatever needs one on the host fails
        with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
            x_TD, experts = torch.zeros(6, D, requires_grad=True), backend(E, D, 16)
            chosen, weights_TK = torch.zeros(6, 2, dtype=torch.int64), torch.zeros(6, 2, requires_grad=True)
            routing = Routing(torch.zeros(6, E), weights_TK, chosen)
            rows, tokens_per_expert, plan = dispatcher.dispatch(x_TD, routing)
            dispatcher.combine(experts(rows, tokens_per_expert), plan).sum().backward()
            assert plan.rows_sent.shape == (1,)
            return x_TD.grad

    assert step(DISPATCHERS["whole"]).shape == (6, D)
    with pytest.raises(DataDependentOutputException):
        step(DISPATCHERS["cut"])


@pytest.mark.parametrize("absent", [0.0, 0.4, 1.0])
def test_what_experts_leave_in_absent_rows_never_leaks(absent):
    x_TD, routing = tokens_for(20).requires_grad_(), draw_routing(3, 20, 3, absent)
    weights = routing.expert_weights.requires_grad_()
    dispatcher = DISPATCHERS["whole"]
    rows, tokens_per_expert, plan = dispatcher.dispatch(x_TD, routing)
    out_TD = dispatcher.combine(Garbage.apply(rows, int(tokens_per_expert.sum())), plan)
    torch.testing.assert_close(out_TD, x_TD * weights.sum(-1, keepdim=True))
    out_TD.sum().backward()
    torch.testing.assert_close(x_TD.grad, weights.detach().sum(-1, keepdim=True).expand_as(x_TD))
    torch.testing.assert_close(weights.grad, x_TD.detach().sum(-1, keepdim=True) * (routing.expert_indices >= 0))


@both
def test_tokens_without_experts_get_zeros(dispatcher):
    routing = draw_routing(0, 6, 2, absent=1.0)
    rows, tokens_per_expert, plan = dispatcher.dispatch(tokens_for(6), routing)
    assert not rows.any()
    assert torch.equal(tokens_per_expert, torch.zeros(E, dtype=torch.int64))
    assert torch.equal(dispatcher.combine(rows, plan), torch.zeros(6, D))


@both
def test_half_precision_stays_half_both_ways(dispatcher):
    x_TD = tokens_for(6).bfloat16().requires_grad_()
    routing = draw_routing(0, 6, 2)
    routing = routing._replace(expert_weights=routing.expert_weights.bfloat16())
    rows, _, plan = dispatcher.dispatch(x_TD, routing)
    out_TD = dispatcher.combine(rows, plan)
    out_TD.sum().backward()
    assert (rows.dtype, out_TD.dtype, x_TD.grad.dtype) == (torch.bfloat16,) * 3


@both
def test_half_precision_outputs_of_single_precision_tokens_are_summed_in_single(dispatcher):
    x_TD, routing = tokens_for(6), draw_routing(0, 6, 2)
    rows, _, plan = dispatcher.dispatch(x_TD, routing)
    out_TD = dispatcher.combine(rows.bfloat16(), plan)
    assert out_TD.dtype == torch.float32
    torch.testing.assert_close(out_TD, x_TD.bfloat16().float() * routing.expert_weights.sum(-1, keepdim=True))


@both
def test_an_expanded_gradient_goes_through(dispatcher):
    x_TD = tokens_for(4).requires_grad_()
    rows, _, _ = dispatcher.dispatch(x_TD, draw_routing(0, 4, 2, absent=0.0))
    rows.sum().backward()
    assert torch.equal(x_TD.grad, torch.full((4, D), 2.0))


def test_sums_are_the_same_on_every_run():
    def total(plan: LocalPlan, y_ND: torch.Tensor) -> torch.Tensor:
        return DISPATCHERS["cut"].combine(y_ND, plan)

    rows, _, plan = DISPATCHERS["cut"].dispatch(tokens_for(200), draw_routing(5, 200, E))
    first = total(plan, rows.sin())
    assert all(torch.equal(total(plan, rows.sin()), first) for _ in range(3))


@both
def test_gradients_reach_tokens_and_weights(dispatcher, make_routing):
    x_TD = tokens_for(4).requires_grad_()
    routing = make_routing(torch.tensor([[0, 1], [2, -1], [3, 4], [-1, -1]]), E)
    weights = routing.expert_weights.requires_grad_()
    rows, _, plan = dispatcher.dispatch(x_TD, routing)
    dispatcher.combine(rows, plan).sum().backward()
    torch.testing.assert_close(x_TD.grad, weights.detach().sum(-1, keepdim=True).expand(4, D))
    torch.testing.assert_close(weights.grad, x_TD.detach().sum(-1, keepdim=True) * (routing.expert_indices >= 0))


@both
def test_what_is_done_meanwhile_is_done_once(dispatcher):
    calls: list[str] = []
    dispatcher.dispatch(tokens_for(4), draw_routing(0, 4, 2), lambda: calls.append("done"))
    assert calls == ["done"]
