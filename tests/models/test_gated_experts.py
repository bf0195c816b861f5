import pytest
import torch
from torch.nn import functional as F

from models.experts import LoopExperts
from models.gated_experts import GatedExperts, SwiGLU

E, D, HIDDEN = 4, 8, 12
LOADS = {"even": [5, 5, 5, 5], "uneven": [1, 13, 2, 7], "empty_experts": [0, 9, 0, 3], "no_rows": [0, 0, 0, 0]}


class GatedLoop(LoopExperts):
    """The obvious reference: one expert after the other, autograd throughout."""

    columns = 2

    def activate(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, -1)
        return F.silu(gate) * up


def build(experts: type = GatedExperts, hidden_dim: int = HIDDEN) -> GatedExperts:
    torch.manual_seed(0)
    return experts(E, D, hidden_dim, init_std=0.5)


def rows_of(loads: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    x_ND = torch.randn(sum(loads), D, generator=torch.Generator().manual_seed(1))
    return x_ND.requires_grad_(), torch.tensor(loads)


def run(experts: LoopExperts | GatedExperts, loads: list[int]) -> list[torch.Tensor]:
    """Output, and gradients of its product with random numbers by rows and both weights."""
    x_ND, tokens_per_expert = rows_of(loads)
    y_ND = experts(x_ND, tokens_per_expert)
    (y_ND * torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [y_ND.detach(), x_ND.grad, experts.w1.grad, experts.w2.grad]


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_equals_the_loop(loads):
    torch.testing.assert_close(run(build(), loads), run(build(GatedLoop), loads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_equals_the_formula_row_by_row(loads):
    experts, (x_ND, tokens_per_expert) = build(), rows_of(loads)
    owner = torch.repeat_interleave(torch.arange(E), tokens_per_expert)
    expected = torch.zeros(len(x_ND), D)
    for row, expert in enumerate(owner):
        gate_w, up_w = experts.w1[expert, :, :HIDDEN], experts.w1[expert, :, HIDDEN:]
        expected[row] = (F.silu(x_ND[row] @ gate_w) * (x_ND[row] @ up_w)) @ experts.w2[expert]
    torch.testing.assert_close(experts(x_ND, tokens_per_expert), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 6), (5, 2), (7, 24)])
def test_activation_has_the_gradient_of_its_formula(shape):
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(SwiGLU.apply, [hidden])


def test_activation_keeps_only_its_input():
    kept = []
    hidden = torch.randn(6, 8, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda kept: kept):
        SwiGLU.apply(hidden)
    assert kept == [hidden.data_ptr()]


def test_unaligned_hidden_width_is_named():
    with pytest.raises(ValueError, match=r"width 10 in torch\.float32 is 40 bytes"):
        build(hidden_dim=10)(*rows_of(LOADS["even"]))


class TestHuggingFace:
    def test_there_and_back(self):
        experts, other = build(), GatedExperts(E, D, HIDDEN)
        weights = experts.to_hugging_face()
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
            "gate_up_proj": (E, 2 * HIDDEN, D),
            "down_proj": (E, D, HIDDEN),
        }
        other.load_hugging_face(**weights)
        assert torch.equal(other.w1, experts.w1)
        assert torch.equal(other.w2, experts.w2)

    def test_copies_share_no_memory(self):
        experts = build()
        weights = experts.to_hugging_face()
        weights["gate_up_proj"].zero_()
        experts.load_hugging_face(torch.ones(E, 2 * HIDDEN, D), weights["down_proj"])
        weights["down_proj"].zero_()
        assert experts.w1.eq(1).all()
        assert experts.w2.any()

    def test_other_shapes_are_named(self):
        experts, narrow, wide = build(), build().to_hugging_face(), build(hidden_dim=16).to_hugging_face()
        with pytest.raises(ValueError, match=r"gate_up_proj must have shape \(4, 24, 8\), got \(4, 32, 8\)"):
            experts.load_hugging_face(**wide)
        with pytest.raises(ValueError, match=r"down_proj must have shape \(4, 8, 12\), got \(4, 8, 16\)"):
            experts.load_hugging_face(torch.zeros_like(narrow["gate_up_proj"]), wide["down_proj"])
        assert experts.w1.all(), "nothing is taken over by half"
