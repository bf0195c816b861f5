"""MegaBlocks' local compute over stand-ins: its own code moves the rows and multiplies them."""

import pytest
import torch

from models.dispatch import LocalDispatcher
from models.experts import Experts, GroupedExperts, LoopExperts
from models.megablocks import MegaBlocksExperts, is_installed
from models.moe import MoELayer
from routers.expert_choice import ExpertChoice

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="MegaBlocks is not installed: make megablocks"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins are for machines without CUDA"),
]

E, D, HIDDEN = 4, 8, 12
LOADS = [[5, 5, 5, 5], [1, 13, 2, 7], [0, 9, 0, 3], [0, 0, 0, 11], [0, 0, 0, 0]]


def build(experts: type[Experts]) -> Experts:
    torch.manual_seed(0)
    return experts(E, D, HIDDEN, init_std=0.5)


def rows(loads: list[int], beyond: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    # cut from one draw: how many are drawn changes the last ones
    x_ND = torch.randn(40, D, generator=torch.Generator().manual_seed(1))[: sum(loads) + beyond]
    return x_ND.clone().requires_grad_(), torch.tensor(loads)


def results(experts: Experts, loads: list[int], beyond: int = 0) -> list[torch.Tensor]:
    """Output and gradients of the rows that experts own."""
    x_ND, tokens_per_expert = rows(loads, beyond)
    y_ND = experts(x_ND, tokens_per_expert)[: sum(loads)]
    (y_ND * torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [y_ND, x_ND.grad[: sum(loads)], experts.w1.grad, experts.w2.grad]


@pytest.mark.parametrize("beyond", [0, 3])
@pytest.mark.parametrize("loads", LOADS)
def test_equals_one_product_an_expert(loads, beyond):
    expected, found = results(build(LoopExperts), loads), results(build(MegaBlocksExperts), loads, beyond)
    for plain, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cut_absent", [True, False])
def test_serves_a_layer_whose_tokens_differ_in_experts(cut_absent):
    layers = []
    for backend in (LoopExperts, MegaBlocksExperts):
        torch.manual_seed(0)
        router = ExpertChoice(D, E, 0, top_k=2)
        layers.append(MoELayer(router, build(backend), LocalDispatcher(cut_absent)))
    x_TD, token_ids = torch.randn(30, D, generator=torch.Generator().manual_seed(0)), torch.zeros(30, dtype=torch.long)
    plain, other = (layer(x_TD, token_ids)[0] for layer in layers)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


def test_checkpoints_are_interchangeable():
    state = build(GroupedExperts).state_dict()
    experts = MegaBlocksExperts(E, D, HIDDEN)
    experts.load_state_dict(state)
    assert all(torch.equal(experts.state_dict()[name], weight) for name, weight in state.items())


def test_native_products_take_bfloat16_only():
    experts, (x_ND, loads) = build(MegaBlocksExperts), rows(LOADS[0])
    experts.half_only = True
    with pytest.raises(ValueError, match=r"bfloat16 only, got torch\.float32; use experts=grouped"):
        experts(x_ND, loads)
