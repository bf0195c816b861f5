import pytest
import torch
from torch.nn import functional as F

from models.moe import MoELayer
from routers.base import Router
from routers.capacity import capacity, drop_over_capacity
from routers.switch import Switch
from routers.uniform import Uniform

T, D, E = 30, 8, 4


def tokens(num_tokens: int = T, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(seed))


def run(layer: MoELayer, x_TD: torch.Tensor):
    return layer(x_TD, torch.zeros(len(x_TD), dtype=torch.int64))


def slowly(layer: MoELayer, x_TD: torch.Tensor, limit: int | None = None) -> torch.Tensor:
    """Token by token and choice by choice."""
    routing = layer.router(x_TD)
    if limit is not None:
        routing = drop_over_capacity(routing, limit)
    out_TD = torch.zeros_like(x_TD)
    for token, x in enumerate(x_TD):
        for expert, weight in zip(routing.expert_indices[token], routing.expert_weights[token], strict=True):
            if expert >= 0:
                hidden = F.gelu(x @ layer.experts.w1[expert], approximate="tanh")
                out_TD[token] += weight * (hidden @ layer.experts.w2[expert])
    return out_TD


class TestForward:
    @pytest.mark.parametrize("options", [{"top_k": 1, "renormalise": False}, {"top_k": 3}, {"router": Uniform}])
    def test_equals_the_slow_reference(self, make_layer, options):
        layer, x_TD = make_layer(**options), tokens()
        torch.testing.assert_close(run(layer, x_TD)[0], slowly(layer, x_TD), rtol=1e-4, atol=1e-5)

    def test_gradients_equal_the_slow_reference(self, make_layer):
        found, expected = make_layer(), make_layer()
        run(found, tokens())[0].square().sum().backward()
        slowly(expected, tokens()).square().sum().backward()
        for (name, parameter), other in zip(found.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
            assert parameter.grad.abs().sum() > 0

    def test_no_token(self, make_layer):
        out_TD, told = run(make_layer(balance_weight=0.1), tokens(0))
        assert out_TD.shape == (0, D)
        assert told.load.tolist() == [0] * E
        assert told.losses["balance"].item() == 0


class TestCapacity:
    def test_dropped_choices_are_not_computed_but_counted(self, make_layer):
        layer, free, x_TD = make_layer(capacity_factor=0.5), make_layer(), tokens()
        out_TD, told = run(layer, x_TD)
        limit = capacity(T, 2, E, 0.5)
        assert told.load.max() > limit
        torch.testing.assert_close(out_TD, slowly(layer, x_TD, limit), rtol=1e-4, atol=1e-5)
        assert torch.equal(told.load, run(free, x_TD)[1].load)
        assert (told.routing.expert_indices >= 0).all()

    def test_enough_room_changes_nothing(self, make_layer):
        wide, free = make_layer(capacity_factor=float(E)), make_layer()
        assert torch.equal(run(wide, tokens())[0], run(free, tokens())[0])

    def test_nothing_is_dropped_at_evaluation(self, make_layer):
        limited, free = make_layer(capacity_factor=0.5).eval(), make_layer().eval()
        assert torch.equal(run(limited, tokens())[0], run(free, tokens())[0])

    def test_a_routers_own_factor_comes_first(self, make_layer):
        own, models = make_layer(Switch, capacity_factor=float(E)), make_layer(Switch, capacity_factor=None)
        assert own.router.capacity_factor == 1.25
        assert torch.equal(run(own, tokens())[0], run(models, tokens())[0])

    def test_factor_that_is_not_positive_is_named(self, make_layer):
        with pytest.raises(ValueError, match=r"capacity factor must be positive, got -1\.0"):
            make_layer(capacity_factor=-1.0)


class TestReport:
    def test_splitting_a_batch_adds_loads(self, make_layer):
        layer, x_TD = make_layer(), tokens()
        parts = [run(layer, part)[1].load for part in x_TD.split([7, 1, 22])]
        assert torch.equal(torch.stack(parts).sum(0), run(layer, x_TD)[1].load)
        assert sum(parts).sum() == T * 2

    def test_losses_are_those_with_a_weight(self, make_layer):
        assert run(make_layer(), tokens())[1].losses == {}
        losses = run(make_layer(balance_weight=0.01, z_weight=0.001), tokens())[1].losses
        assert losses.keys() == {"balance", "z"}
        assert 0 < losses["balance"].item() < 0.01 * E


class EveryOther(Router):
    """Even tokens take the last expert, odd ones none."""

    def select(self, scores, token_ids=None):
        last = torch.full((len(scores), self.top_k), -1)
        last[::2, 0] = self.num_experts - 1
        return last


class ByTokenId(Router):
    """A hash router: the token's id decides."""

    def select(self, scores, token_ids=None):
        return token_ids[:, None] % self.num_experts


class TestRouterAddedOnTheFly:
    def test_one_method_is_enough(self, make_layer):
        layer, x_TD = make_layer(EveryOther, balance_weight=0.1), tokens()
        out_TD, told = run(layer, x_TD)
        assert told.load.tolist() == [0, 0, 0, T // 2]
        assert torch.equal(out_TD[1::2], torch.zeros(T // 2, D))
        torch.testing.assert_close(out_TD, slowly(layer, x_TD), rtol=1e-4, atol=1e-5)

    def test_token_ids_arrive(self, make_layer):
        token_ids = torch.arange(T) * 3
        _, told = make_layer(ByTokenId, top_k=1)(tokens(), token_ids)
        assert torch.equal(told.routing.expert_indices[:, 0], token_ids % E)


def test_layer_runs_under_autocast_close_to_single_precision(make_layer):
    layer = make_layer()
    x_TD = torch.randn(20, layer.router.gate.in_features, generator=torch.Generator().manual_seed(0))
    token_ids = torch.zeros(20, dtype=torch.long)
    exact_TD, told = layer(x_TD, token_ids)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD, half_told = layer(x_TD, token_ids)
    torch.testing.assert_close(y_TD.float(), exact_TD, atol=0.05, rtol=0.05)
    assert torch.equal(half_told.routing.expert_indices, told.routing.expert_indices), "the gate stays in float32"
