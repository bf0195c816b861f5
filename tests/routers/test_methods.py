"""What each router promises beyond the contract."""

import math
from collections.abc import Callable

import pytest
import torch

from routers.base import Router
from routers.losses import count_tokens
from routers.random import Random
from routers.topk import TopK
from routers.uniform import Uniform

D, E, T = 16, 8, 24


def topk_slowly(logits: list[float], top_k: int, renormalise: bool) -> dict[int, float]:
    """Weight of each chosen expert of one token: softmax, sort, cut, divide."""
    exponentials = [math.exp(logit) for logit in logits]
    scores = {expert: value / sum(exponentials) for expert, value in enumerate(exponentials)}
    best = dict(sorted(scores.items(), key=lambda item: -item[1])[:top_k])
    total = sum(best.values()) if renormalise else 1.0
    return {expert: score / total for expert, score in best.items()}


class TestTopK:
    @pytest.mark.parametrize("renormalise", [True, False])
    @pytest.mark.parametrize("top_k", [1, 3, E])
    def test_equals_the_slow_reference(self, top_k, renormalise):
        logits_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(top_k)) * 2
        routing = TopK(D, E, 0, top_k=top_k, renormalise=renormalise).route(logits_TE)
        for logits, chosen, weights in zip(logits_TE, routing.expert_indices, routing.expert_weights, strict=True):
            expected = topk_slowly(logits.tolist(), top_k, renormalise)
            found = dict(zip(chosen.tolist(), weights.tolist(), strict=True))
            assert found == pytest.approx(expected, abs=1e-5)
            assert list(found) == list(expected), "best expert first"

    def test_renormalised_top_1_weighs_one(self):
        router = TopK(D, E, 0, top_k=1, renormalise=True)
        assert torch.equal(router.route(torch.randn(T, E)).expert_weights, torch.ones(T, 1))


@pytest.fixture
def draw() -> Callable[[Router], torch.Tensor]:
    return lambda router: router.select(torch.zeros(T, E))


class TestRandom:
    def test_draws_anew_at_each_call(self, draw):
        router = Random(D, E, 0, top_k=2)
        assert not torch.equal(draw(router), draw(router))

    def test_state_resumes_the_draws(self, draw, tmp_path):
        router = Random(D, E, 0, top_k=2, seed=1)
        draw(router)
        torch.save(router.state_dict(), tmp_path / "state.pt")
        following = [draw(router) for _ in range(3)]
        resumed = Random(D, E, 0, top_k=2, seed=9)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert all(torch.equal(draw(resumed), step) for step in following)

    def test_layers_and_seeds_draw_independently(self, draw):
        places = [(layer, seed) for layer in range(2) for seed in range(2)]
        draws = [draw(Random(D, E, layer, top_k=2, seed=seed)) for layer, seed in places]
        assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])

    def test_does_not_touch_the_global_generator(self, draw):
        before = torch.get_rng_state()
        router = Random(D, E, 0, top_k=2)
        after_gate = torch.get_rng_state()
        draw(router)
        assert torch.equal(torch.get_rng_state(), after_gate)
        assert not torch.equal(before, after_gate), "the gate's initialisation is a global draw"

    def test_experts_are_equally_likely(self):
        chosen = Random(D, E, 0, top_k=2).select(torch.zeros(20_000, E))
        expected = 20_000 * 2 / E
        # six standard deviations of a binomial count
        assert (count_tokens(chosen, E) - expected).abs().max() < 6 * math.sqrt(expected * (1 - 2 / E))


class TestUniform:
    @pytest.mark.parametrize(("num_tokens", "top_k"), [(24, 2), (7, 3), (1, 1), (5, E)])
    def test_loads_differ_by_at_most_one(self, num_tokens, top_k):
        loads = count_tokens(Uniform(D, E, 0, top_k=top_k).select(torch.rand(num_tokens, E)), E)
        assert loads.sum() == num_tokens * top_k
        assert loads.max() - loads.min() <= 1

    def test_is_blind_to_the_token(self):
        router = Uniform(D, E, 0, top_k=2)
        assert torch.equal(router.select(torch.rand(T, E)), router.select(torch.rand(T, E)))


def test_a_router_must_say_what_it_selects():
    with pytest.raises(NotImplementedError):
        Router(D, E, 0, top_k=1)(torch.zeros(T, D))
