"""Routers that steer themselves after each step: slow references, and where the steering leads."""

import math

import pytest
import torch

from routers.base import Router
from routers.loss_free import LossFree
from routers.losses import count_tokens
from routers.quantile import Quantile, balancing_bias
from routers.relu import Relu, balanced_l1

D, E, T = 16, 8, 256


def draw_logits(seed: int = 0, num_tokens: int = T) -> torch.Tensor:
    """Logits (T, E) that favour the later experts."""
    return torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed)) + torch.linspace(-1, 1, E)


def violation(router: Router, logits: torch.Tensor) -> float:
    """Highest load over the mean, less 1, without steering by these tokens."""
    loads = count_tokens(router.eval().route(logits).expert_indices, E).float()
    router.train()
    return (loads.max() / loads.mean() - 1).item()


BIASED = [LossFree, Quantile]


@pytest.mark.parametrize("router_class", BIASED)
class TestBiased:
    def test_bias_changes_the_choice_and_not_the_weights(self, router_class):
        router, logits = router_class(D, E, 0, top_k=1, renormalise=False), draw_logits()
        router.bias[0] = 2.0
        routing = router.route(logits)
        assert (routing.expert_indices == 0).all()
        torch.testing.assert_close(routing.expert_weights, logits[:, :1].sigmoid())

    def test_loads_even_out_over_steps(self, router_class):
        options = {"update_rate": 0.01} if router_class is LossFree else {}
        router = router_class(D, E, 0, top_k=2, **options)
        before = violation(router, draw_logits(999))
        for step in range(100):
            router.route(draw_logits(step))
            router.finish_step()
        assert before > 0.6
        assert violation(router, draw_logits(999, 4096)) < 0.15

    def test_evaluation_steers_nothing(self, router_class):
        router = router_class(D, E, 0, top_k=2).eval()
        router.route(draw_logits())
        router.finish_step()
        assert router.bias.tolist() == [0] * E

    def test_micro_batches_of_a_step_count_together(self, router_class):
        whole, split, late = (router_class(D, E, 0, top_k=2) for _ in range(3))
        logits = draw_logits()
        whole.route(logits.repeat(2, 1))
        for micro_batch in (logits, logits):
            split.route(micro_batch)
        late.route(logits)
        for router in (whole, split, late):
            router.finish_step()
            router.finish_step()
        torch.testing.assert_close(whole.bias, split.bias)
        torch.testing.assert_close(late.bias, split.bias)
        assert whole.bias.abs().sum() > 0

    def test_bias_is_part_of_the_state(self, router_class, tmp_path):
        router = router_class(D, E, 0, top_k=2)
        router.route(draw_logits())
        router.finish_step()
        torch.save(router.state_dict(), tmp_path / "state.pt")
        resumed = router_class(D, E, 0, top_k=2)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(resumed.bias, router.bias)
        assert torch.equal(resumed.route(draw_logits(1)).expert_indices, router.route(draw_logits(1)).expert_indices)


class TestLossFree:
    def test_each_step_moves_the_bias_by_the_rate_against_the_load(self):
        router = LossFree(D, E, 0, top_k=2, update_rate=0.25)
        loads = count_tokens(router.route(draw_logits()).expert_indices, E).tolist()
        router.finish_step()
        mean = sum(loads) / E
        assert router.bias.tolist() == [math.copysign(0.25, mean - load) if load != mean else 0.0 for load in loads]

    def test_negative_rate_is_named(self):
        with pytest.raises(ValueError, match=r"negative, got -0\.1"):
            LossFree(D, E, 0, top_k=2, update_rate=-0.1)


def balancing_slowly(scores_TE: list[list[float]], bias: list[float], top_k: int) -> list[float]:
    """Each expert's bias such that floor(T K / E) tokens rank it above their (K+1)-th best under the old bias."""
    thresholds = [sorted((s + b for s, b in zip(row, bias, strict=True)), reverse=True)[top_k] for row in scores_TE]
    quota = len(scores_TE) * top_k // E
    found = []
    for expert in range(E):
        margins = sorted((row[expert] - a for row, a in zip(scores_TE, thresholds, strict=True)), reverse=True)
        found.append(-margins[min(quota, len(margins) - 1)])
    return found


class TestQuantile:
    @pytest.mark.parametrize(("num_tokens", "top_k"), [(T, 2), (50, 3), (1, 1), (9, E - 1)])
    def test_equals_the_slow_reference(self, num_tokens, top_k):
        scores, bias = draw_logits(3, num_tokens).sigmoid(), torch.linspace(0.2, -0.2, E)
        expected = balancing_slowly(scores.tolist(), bias.tolist(), top_k)
        assert balancing_bias(scores, bias, top_k).tolist() == pytest.approx(expected, abs=1e-6)

    def test_one_step_sets_the_centred_bias(self):
        router, logits = Quantile(D, E, 0, top_k=2), draw_logits()
        expected = balancing_bias(logits.sigmoid(), torch.zeros(E), 2)
        router.route(logits)
        router.finish_step()
        torch.testing.assert_close(router.bias, expected - expected.mean())

    def test_a_repeated_batch_is_balanced_in_few_steps(self):
        router, logits = Quantile(D, E, 0, top_k=2), draw_logits()
        for _ in range(10):
            router.route(logits)
            router.finish_step()
        assert violation(router, logits) < 0.05

    def test_with_all_experts_chosen_there_is_nothing_to_steer(self):
        router = Quantile(D, E, 0, top_k=E)
        router.route(draw_logits())
        router.finish_step()
        assert router.bias.tolist() == [0] * E


class TestRelu:
    def test_equals_the_slow_reference(self):
        logits_TE = draw_logits(0, 20)
        routing = Relu(D, E, 0, top_k=2, renormalise=False).route(logits_TE)
        for logits, chosen, weights in zip(logits_TE, routing.expert_indices, routing.expert_weights, strict=True):
            expected = {expert: logit for expert, logit in enumerate(logits.tolist()) if logit > 0}
            pairs = zip(chosen.tolist(), weights.tolist(), strict=True)
            assert {expert: weight for expert, weight in pairs if expert >= 0} == pytest.approx(expected)

    def test_a_token_may_have_no_expert(self):
        routing = Relu(D, E, 0, top_k=2).route(torch.full((3, E), -1.0))
        assert (routing.expert_indices == -1).all()
        assert (routing.expert_weights == 0).all()

    def test_penalty_equals_the_slow_reference(self):
        logits_TE = draw_logits(0, 20)
        router = Relu(D, E, 0, top_k=2, penalty=0.5)
        routing = router.route(logits_TE)
        rows = [[max(0.0, logit) for logit in token] for token in logits_TE.tolist()]
        loads = [E / (2 * 20) * sum(row[expert] > 0 for row in rows) for expert in range(E)]
        expected = 0.5 * sum(load * score for row in rows for load, score in zip(loads, row, strict=True)) / 20
        assert router.losses(logits_TE, routing)["sparsity"].item() == pytest.approx(expected, rel=1e-5)

    def test_balanced_penalty_is_the_plain_norm_where_loads_are_even(self):
        token = torch.tensor([3.0, 1.0] + [-1.0] * (E - 2))
        logits = torch.stack([token.roll(turn) for turn in range(E)])
        assert balanced_l1(Relu(D, E, 0, top_k=2).route(logits), 2).item() == pytest.approx(4.0)

    @pytest.mark.parametrize(("logit", "expected"), [(1.0, [0.625, 0.78125, 0.9765625]), (-1.0, [0.5, 0.5, 0.5])])
    def test_strength_grows_while_too_many_are_active_and_keeps_its_floor(self, logit, expected):
        router = Relu(D, E, 0, top_k=2, penalty=0.5, growth=1.25)
        found = []
        for _ in range(3):
            router.route(torch.full((3, E), logit))
            router.finish_step()
            found.append(router.strength.item())
        assert found == pytest.approx(expected)

    def test_strength_shrinks_while_too_few_are_active_and_keeps_its_ceiling(self):
        router = Relu(D, E, 0, top_k=2, penalty=0.125, growth=2.0)
        for logit, expected in ((1.0, 0.25), (-1.0, 0.125), *[(1.0, 0.25 * 2**n) for n in range(6)], (1.0, 8.0)):
            router.route(torch.full((3, E), logit))
            router.finish_step()
            assert router.strength.item() == expected

    def test_strength_rests_at_the_target_over_the_whole_step_and_in_evaluation(self):
        router = Relu(D, E, 0, top_k=E // 2, penalty=0.5)
        # all experts in one micro-batch, none in the other: half of them on average
        for logit in (1.0, -1.0):
            router.route(torch.full((3, E), logit))
        router.finish_step()
        router.eval().route(torch.ones(3, E))
        router.finish_step()
        assert router.strength.item() == 0.5

    def test_sparsity_settles_at_k(self):
        torch.manual_seed(0)
        router = Relu(D, E, 0, top_k=2, penalty=1e-3)
        generator = torch.Generator().manual_seed(1)
        teacher_DE = torch.randn(D, E, generator=generator)
        active = []
        for _ in range(200):
            x_TD = torch.randn(128, D, generator=generator)
            # a constant input is the bias that lets a gate close
            x_TD[:, 0] = 2.0
            logits = router.logits(x_TD)
            routing = router.route(logits)
            active.append((routing.expert_indices >= 0).sum().item() / len(x_TD))
            error = (routing.scores - (x_TD @ teacher_DE).relu()).square().sum(-1).mean()
            loss = error + router.losses(logits, routing)["sparsity"]
            (gradient,) = torch.autograd.grad(loss, router.gate.weight)
            with torch.no_grad():
                router.gate.weight -= 0.03 * gradient
            router.finish_step()
        assert max(active) > 4
        assert sum(active[-50:]) / 50 == pytest.approx(2.0, abs=0.1)

    def test_strength_is_part_of_the_state(self):
        router = Relu(D, E, 0, top_k=2)
        router.route(torch.ones(3, E))
        router.finish_step()
        resumed = Relu(D, E, 0, top_k=2)
        resumed.load_state_dict(router.state_dict())
        assert resumed.strength.item() == pytest.approx(1.2e-8)

    @pytest.mark.parametrize("options", [{"penalty": 0.0}, {"penalty": 1.0}, {"growth": 1.0}])
    def test_bad_value_is_named(self, options):
        (name, value), *_ = options.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Relu(D, E, 0, top_k=2, **options)
