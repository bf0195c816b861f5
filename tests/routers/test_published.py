"""Routers that choose from the batch at hand: each equals a slow reading of its paper."""

import math
import statistics
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers.base import Routing
from routers.capacity import capacity, drop_over_capacity
from routers.expert_choice import ExpertChoice
from routers.hash import Hash
from routers.losses import count_tokens, load_balance_loss
from routers.noisy_topk import NoisyTopK
from routers.sigmoid import Sigmoid
from routers.sinkhorn import Sinkhorn, balanced_plan
from routers.switch import Switch
from routers.topk import TopK

D, E, T = 16, 8, 24


def draw_logits(seed: int, num_tokens: int = T, spread: float = 2.0) -> torch.Tensor:
    """Logits (T, E) that favour the later experts."""
    normal = torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed))
    return spread * normal + torch.linspace(0, 2, E)


def draw_hidden(num_tokens: int = T) -> torch.Tensor:
    return torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("router", [Sigmoid, Switch, ExpertChoice, Sinkhorn])
def test_permuting_the_experts_permutes_the_loads(router):
    permutation = torch.randperm(E, generator=torch.Generator().manual_seed(1))
    logits = draw_logits(0)
    routing, other = (router(D, E, 0, top_k=2).route(some) for some in (logits, logits[:, permutation]))
    loads, other_loads = (count_tokens(r.expert_indices, E) for r in (routing, other))
    assert torch.equal(loads[permutation], other_loads)
    assert len(loads.unique()) > 1 or router is ExpertChoice


class TestSigmoid:
    @pytest.mark.parametrize("top_k", [1, 3, E])
    def test_equals_the_slow_reference(self, top_k):
        logits_TE = draw_logits(top_k)
        routing = Sigmoid(D, E, 0, top_k=top_k).route(logits_TE)
        for logits, chosen, weights in zip(logits_TE, routing.expert_indices, routing.expert_weights, strict=True):
            scores = {expert: 1 / (1 + math.exp(-logit)) for expert, logit in enumerate(logits.tolist())}
            best = sorted(scores, key=lambda expert: -scores[expert])[:top_k]
            expected = {expert: scores[expert] / sum(scores[e] for e in best) for expert in best}
            assert dict(zip(chosen.tolist(), weights.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)

    def test_chooses_as_softmax_does(self):
        sigmoid, softmax = (router(D, E, 0, top_k=3).route(draw_logits(0)) for router in (Sigmoid, TopK))
        assert torch.equal(sigmoid.expert_indices, softmax.expert_indices)
        assert not torch.allclose(sigmoid.expert_weights, softmax.expert_weights, atol=0.01)

    def test_balance_loss_sees_scores_that_sum_to_one(self):
        router, logits = Sigmoid(D, E, 0, top_k=2, balance_weight=0.5), draw_logits(0)
        routing = router.route(logits)
        shares = routing.scores / routing.scores.sum(-1, keepdim=True)
        expected = 0.5 * load_balance_loss(shares, routing.expert_indices)
        assert router.losses(logits, routing)["balance"] == pytest.approx(expected.item())


class TestSwitch:
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_weight_is_the_score_and_the_full_expert_refuses(self, top_k):
        router, logits = Switch(D, E, 0, top_k=top_k), draw_logits(0)
        routing = router.route(logits)
        assert torch.equal(routing.expert_weights, logits.softmax(-1).topk(top_k).values)
        assert router.capacity_factor == 1.25
        limit = capacity(T, top_k, E, 1.25)
        dropped = drop_over_capacity(routing, limit)
        assert count_tokens(dropped.expert_indices, E).max() == limit < count_tokens(routing.expert_indices, E).max()


class TestExpertChoice:
    @given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, E))
    def test_equals_the_slow_reference(self, seed, num_tokens, top_k):
        scores_TE = draw_logits(seed, num_tokens).softmax(-1)
        chosen = ExpertChoice(D, E, 0, top_k=top_k).select(scores_TE)
        quota = math.ceil(num_tokens * top_k / E)
        for expert, scores in enumerate(scores_TE.T.tolist()):
            best = sorted(range(num_tokens), key=lambda token: -scores[token])[:quota]
            taken = [token for token in range(num_tokens) if expert in chosen[token].tolist()]
            assert taken == sorted(best)
        assert count_tokens(chosen, E).tolist() == [quota] * E

    def test_a_later_token_changes_an_earlier_one(self):
        router, logits = ExpertChoice(D, E, 0, top_k=2, renormalise=False), draw_logits(0)
        alone = router.route(logits[:-4])
        assert not torch.equal(router.route(logits).expert_indices[:-4], alone.expert_indices)
        assert not router.causal

    def test_weights_are_the_scores(self):
        routing = ExpertChoice(D, E, 0, top_k=2, renormalise=False).route(draw_logits(0))
        taken = routing.expert_indices >= 0
        assert torch.equal(routing.expert_weights[taken], routing.scores[taken])


class TestSinkhorn:
    def test_rows_and_columns_hold_equal_mass(self):
        plan = balanced_plan(draw_logits(0), 200)
        torch.testing.assert_close(plan.sum(1), torch.full((T,), 1 / T))
        torch.testing.assert_close(plan.sum(0), torch.full((E,), 1 / E), atol=1e-5, rtol=0)

    def test_equals_the_slow_reference(self):
        logits = draw_logits(1).double()
        plan = logits.exp()
        plan = plan / plan.sum(1, keepdim=True)
        for _ in range(7):
            plan = plan / plan.sum(0, keepdim=True) / E
            plan = plan / plan.sum(1, keepdim=True) / T
        torch.testing.assert_close(balanced_plan(logits.float(), 7), plan.float())

    def test_balances_in_training_and_looks_at_the_token_alone_in_evaluation(self):
        router, logits = Sinkhorn(D, E, 0, top_k=2), draw_logits(0, 400)
        trained, evaluated = router.route(logits), router.eval().route(logits)
        plain = TopK(D, E, 0, top_k=2, renormalise=False).route(logits)
        assert torch.equal(evaluated.expert_indices, plain.expert_indices)
        loads, plain_loads = (count_tokens(r.expert_indices, E) for r in (trained, plain))
        assert loads.max() < 1.3 * 100 < plain_loads.max()
        assert plain_loads.min() < 0.7 * 100 < loads.min()

    @pytest.mark.parametrize(("top_k", "score"), [(1, torch.sigmoid), (2, partial(torch.softmax, dim=-1))])
    def test_weights_are_the_plain_scores(self, top_k, score):
        logits = draw_logits(0)
        routing = Sinkhorn(D, E, 0, top_k=top_k, renormalise=False).route(logits)
        assert torch.equal(routing.expert_weights, score(logits).gather(1, routing.expert_indices))

    def test_extreme_logits_stay_finite(self):
        logits = torch.tensor([[500.0, 0.0], [500.0, 0.0], [500.0, 0.0]])
        assert balanced_plan(logits, 20).isfinite().all()

    def test_no_iteration_is_named(self):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            Sinkhorn(D, E, 0, top_k=2, num_iterations=0)


class TestHash:
    def test_a_token_id_always_has_the_same_experts_whatever_its_hidden_state(self):
        router, token_ids = Hash(D, E, 0, top_k=3), torch.arange(T) % 5
        first, second = (router(draw_hidden() * scale, token_ids) for scale in (1, -3))
        assert torch.equal(first.expert_indices, second.expert_indices)
        assert first.expert_indices.unique(dim=0).shape[0] == 5
        assert torch.equal(first.expert_weights, torch.full((T, 3), 1 / 3))

    def test_layers_and_seeds_have_tables_of_their_own(self):
        tables = [Hash(D, E, layer, top_k=2, seed=seed).table for layer in range(2) for seed in range(2)]
        assert all(not torch.equal(a, b) for i, a in enumerate(tables) for b in tables[:i])

    def test_experts_hold_equally_many_ids(self):
        loads = count_tokens(Hash(D, E, 0, top_k=2).table, E)
        expected = 65_536 * 2 / E
        # six standard deviations of a binomial count
        assert (loads - expected).abs().max() < 6 * math.sqrt(expected)

    def test_ids_beyond_the_table_wrap_around(self):
        router = Hash(D, E, 0, top_k=2, num_buckets=10)
        assert torch.equal(router.select(torch.zeros(2, E), torch.tensor([3, 7])), router.table[[3, 7]])
        assert torch.equal(router.select(torch.zeros(2, E), torch.tensor([13, 27])), router.table[[3, 7]])

    def test_missing_token_ids_are_an_error(self):
        with pytest.raises(ValueError, match="needs token_ids"):
            Hash(D, E, 0, top_k=2)(draw_hidden())

    def test_no_bucket_is_named(self):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            Hash(D, E, 0, top_k=2, num_buckets=0)


def load_slowly(noisy: list[float], clean: list[float], scale: list[float], top_k: int) -> list[float]:
    """Shazeer's P(x, i) of one token: the probability to exceed the K-th best of the *other* experts."""
    found = []
    for expert in range(len(noisy)):
        others = sorted((noisy[e] for e in range(len(noisy)) if e != expert), reverse=True)
        deviations = (clean[expert] - others[top_k - 1]) / scale[expert]
        found.append(0.5 * (1 + math.erf(deviations / math.sqrt(2))))
    return found


def gates_slowly(routing: Routing) -> list[float]:
    """Sum of each expert's weights."""
    found = [0.0] * E
    for chosen, weights in zip(routing.expert_indices.tolist(), routing.expert_weights.tolist(), strict=True):
        for expert, weight in zip(chosen, weights, strict=True):
            found[expert] += weight
    return found


def variation_slowly(amounts: Sequence[float]) -> float:
    return (statistics.pstdev(amounts) / statistics.fmean(amounts)) ** 2


class TestNoisyTopK:
    def test_noise_is_normal_of_the_learned_scale_and_only_in_training(self):
        router, x_TD = NoisyTopK(D, E, 0, top_k=2), draw_hidden(4_000)
        clean = x_TD @ router.gate.weight.T
        scale = torch.log1p(torch.exp(x_TD @ router.noise.weight.T)) + 0.01
        standard = ((router.logits(x_TD) - clean) / scale).detach()
        assert standard.mean().abs() < 0.05
        assert standard.std().item() == pytest.approx(1.0, abs=0.05)
        torch.testing.assert_close(router.eval().logits(x_TD), clean)

    @pytest.mark.parametrize("top_k", [1, 2, E - 1])
    def test_losses_equal_the_slow_reference(self, top_k):
        router, x_TD = NoisyTopK(D, E, 0, top_k=top_k, balance_weight=0.5), draw_hidden()
        logits = router.logits(x_TD)
        drawn = router.drawn
        assert drawn is not None
        routing = router.route(logits)
        tokens = zip(drawn.noisy.tolist(), drawn.clean.tolist(), drawn.scale.tolist(), strict=True)
        load = [sum(column) for column in zip(*(load_slowly(*token, top_k) for token in tokens), strict=True)]
        expected = 0.5 * (variation_slowly(gates_slowly(routing)) + variation_slowly(load))
        assert router.losses(logits, routing)["balance"].item() == pytest.approx(expected, rel=1e-4)

    def test_weights_are_the_softmax_over_the_kept_logits(self):
        routing = NoisyTopK(D, E, 0, top_k=3).route(logits := draw_logits(0))
        torch.testing.assert_close(routing.expert_weights, logits.topk(3).values.softmax(-1))

    def test_load_loss_trains_the_noise(self):
        router = NoisyTopK(D, E, 0, top_k=2, balance_weight=1.0)
        logits = router.logits(draw_hidden())
        router.losses(logits, router.route(logits))["balance"].backward()
        assert router.noise.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("top_k", [2, E])
    def test_without_noise_the_load_is_the_count(self, top_k):
        router, x_TD = NoisyTopK(D, E, 0, top_k=top_k, balance_weight=1.0).eval(), draw_hidden()
        logits = router.logits(x_TD)
        routing = router.route(logits)
        counts = count_tokens(routing.expert_indices, E).tolist()
        expected = variation_slowly(gates_slowly(routing)) + variation_slowly(counts)
        assert router.losses(logits, routing)["balance"].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)

    def test_state_resumes_the_noise(self, tmp_path):
        router, x_TD = NoisyTopK(D, E, 0, top_k=2, seed=1), draw_hidden()
        router.logits(x_TD)
        torch.save(router.state_dict(), tmp_path / "state.pt")
        resumed = NoisyTopK(D, E, 1, top_k=2, seed=9)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(router.logits(x_TD), resumed.logits(x_TD))

    def test_epsilon_that_is_not_positive_is_named(self):
        with pytest.raises(ValueError, match=r"positive, got 0\.0"):
            NoisyTopK(D, E, 0, top_k=2, noise_epsilon=0.0)
