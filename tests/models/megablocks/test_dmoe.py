"""The stock dMoE over stand-ins, its real layer code, against plain references and against our layer."""

import importlib
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from models.dispatch import LocalDispatcher
from models.experts import LoopExperts
from models.megablocks import StockDMoE, is_installed
from models.megablocks.dmoe import fill_empty
from models.moe import MoELayer
from routers.base import Router, Routing
from routers.expert_choice import ExpertChoice
from routers.hash import Hash
from routers.relu import Relu
from routers.topk import TopK

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="MegaBlocks is not installed: make megablocks"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins are for machines without CUDA"),
]

T, D, E, HIDDEN = 30, 8, 4, 32
TOKEN_IDS = torch.arange(T) % 7


def tokens() -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(1)).requires_grad_()


def pair(router: type[Router] = TopK, **options) -> tuple[MoELayer, StockDMoE]:
    """Our layer and the stock one, same weights."""
    torch.manual_seed(0)
    options = {"top_k": 2} | options
    ours = MoELayer(router(D, E, 0, **options), LoopExperts(E, D, HIDDEN, init_std=0.3), LocalDispatcher())
    stock = StockDMoE(router(D, E, 0, **options), D, HIDDEN)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def slowly(ours: MoELayer, x_TD: torch.Tensor) -> torch.Tensor:
    """Token by token and choice by choice."""
    routing, outputs = ours.router(x_TD, TOKEN_IDS), []
    for token, x in enumerate(x_TD):
        terms = [
            weight * (F.gelu(x @ ours.experts.w1[expert], approximate="tanh") @ ours.experts.w2[expert])
            for expert, weight in zip(routing.expert_indices[token], routing.expert_weights[token], strict=True)
        ]
        outputs.append(torch.stack(terms).sum(0))
    return torch.stack(outputs)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-6 of the largest number."""
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_equals_the_plain_reference_in_output_and_gradients(top_k):
    ours, stock = pair(top_k=top_k)
    x_TD, other_TD = tokens(), tokens()
    expected, found = slowly(ours, x_TD), stock(other_TD, TOKEN_IDS)[0]
    close(found, expected)
    expected.square().mean().backward()
    found.square().mean().backward()
    close(other_TD.grad, x_TD.grad)
    w1, w2 = stock.dmoe.experts.mlp.w1.grad.view(E, HIDDEN, D), stock.dmoe.experts.mlp.w2.grad.view(E, HIDDEN, D)
    close(w1.transpose(1, 2), ours.experts.w1.grad)
    close(w2, ours.experts.w2.grad)
    close(stock.router.gate.weight.grad, ours.router.gate.weight.grad)
    assert w1.abs().max() > 1e-4


def test_its_own_forward_with_our_router_is_the_same():
    _, stock = pair()
    assert torch.equal(stock.dmoe(tokens()[None])[0], stock(tokens(), TOKEN_IDS)[0])


@pytest.mark.parametrize("router", [TopK, ExpertChoice, Relu, Hash])
def test_equals_our_layer_under_any_router(router):
    ours, stock = pair(router, **({} if router is Hash else {"balance_weight": 0.1}))
    (expected, told), (found, other) = ours(tokens(), TOKEN_IDS), stock(tokens(), TOKEN_IDS)
    close(found, expected)
    assert torch.equal(told.load, other.load)
    assert told.losses.keys() == other.losses.keys()
    assert all(torch.equal(loss, other.losses[name]) for name, loss in told.losses.items())
    expected.square().mean().backward()
    found.square().mean().backward()
    if router is not Hash:
        close(stock.router.gate.weight.grad, ours.router.gate.weight.grad)
    assert other.plan.rows_sent.tolist() == [told.routing.expert_indices.numel()]


def test_tokens_without_experts_are_zero():
    routing = Routing(
        torch.rand(3, E), torch.tensor([[1.0, 9.0], [9.0, 9.0], [0.5, 0.5]]), torch.tensor([[2, -1], [-1, -1], [0, 3]])
    )
    filled = fill_empty(routing)
    assert filled.expert_indices.tolist() == [[2, 1], [0, 1], [0, 3]]
    assert filled.expert_weights.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]


def test_evaluation_has_no_losses_and_training_no_list_of_them():
    _, stock = pair(balance_weight=0.1)
    assert stock(tokens(), TOKEN_IDS)[1].losses
    assert stock.eval()(tokens(), TOKEN_IDS)[1].losses == {}
    assert importlib.import_module("megablocks.layers.moe").get_load_balancing_loss() == []


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_weights():
    _, stock = pair()
    exact_TD = stock(tokens(), TOKEN_IDS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out_TD = stock(tokens(), TOKEN_IDS)[0]
    assert out_TD.dtype == torch.bfloat16
    torch.testing.assert_close(out_TD.float(), exact_TD, atol=0.05, rtol=0.05)
    out_TD.sum().backward()
    assert stock.dmoe.experts.mlp.w1.grad.dtype == torch.float32


class TestCheckpoints:
    def test_names_and_layout_are_ours(self):
        ours, stock = pair()
        state, other = ours.state_dict(), stock.state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(other[name], weight) for name, weight in state.items())

    def test_there_and_back(self):
        ours, stock = pair()
        stock.dmoe.experts.mlp.w1.data.mul_(2)
        ours.load_state_dict(stock.state_dict())
        close(ours(tokens(), TOKEN_IDS)[0], stock(tokens(), TOKEN_IDS)[0])

    def test_inside_a_model(self, make_transformer):
        ours, stock = make_transformer(expert_dim=32), make_transformer(expert_dim=32, moe_layer=StockDMoE)
        stock.load_state_dict(ours.state_dict())
        token_ids = torch.arange(16).view(2, 8)
        expected, found = ours(token_ids), stock(token_ids)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
        assert len(stock.routers) == len(found.moe) == 2

    def test_missing_weights_are_still_missed(self):
        ours, stock = pair()
        state = {name: weight for name, weight in ours.state_dict().items() if name != "experts.w1"}
        with pytest.raises(RuntimeError, match=r"Missing key.*w1"):
            stock.load_state_dict(state)


class TestTraining:
    def test_losses_equal_our_layers(self, fit, make_module):
        sizes = {"expert_dim": 32}
        ours, stock = make_module(sizes), make_module(sizes | {"moe_layer": StockDMoE})
        ours.configure_model()
        stock.configure_model()
        stock.load_state_dict(ours.state_dict())
        _, expected = fit(module=ours)
        _, found = fit(module=stock)
        assert found == pytest.approx(expected, rel=1e-4)
        assert expected[-1] < expected[0]

    def test_resumes_from_its_checkpoint(self, fit, make_module, tmp_path):
        build = partial(make_module, {"expert_dim": 32, "moe_layer": StockDMoE})
        _, whole = fit(module=build())
        trainer, first = fit(module=build(), steps=6)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        _, second = fit(module=build(), ckpt_path=tmp_path / "half.ckpt")
        assert first + second == pytest.approx(whole, rel=1e-6)


class TestRefusals:
    def test_capacity(self):
        with pytest.raises(ValueError, match=r"dMoE drops no token: the capacity factor must be null, got 1\.5"):
            StockDMoE(TopK(D, E, 0, top_k=2, capacity_factor=1.5), D, HIDDEN)
        with pytest.raises(ValueError, match=r"got 2\.0"):
            StockDMoE(TopK(D, E, 0, top_k=2), D, HIDDEN, capacity_factor=2.0)

    def test_too_narrow(self):
        with pytest.raises(ValueError, match="at least 128 columns in all, got 4 experts of width 31"):
            StockDMoE(TopK(D, E, 0, top_k=2), D, 31)

    def test_sparse_without_triton(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="need a CUDA device; use mlp_impl=grouped"):
            StockDMoE(TopK(128, E, 0, top_k=2), 128, 128, mlp_impl="sparse")

    def test_sparse_widths(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(ValueError, match="multiple of 128, got 96"):
            StockDMoE(TopK(128, E, 0, top_k=2), 128, 96, mlp_impl="sparse")
