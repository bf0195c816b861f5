"""One step of an MoE layer, ours or Hugging Face's, on the same tokens with the same weights.

Hugging Face's is Qwen2-MoE's sparse block with each of its experts implementations. Its shared expert is left out (its
gate and its experts are called as the block calls them): we have none, and even a small one would count against the
block. Experts are as wide as the model, F = D, narrower than most: the less the matrix products take, the more the rest
shows.

Loads are drawn, not learned: the gates read the first E coordinates of a token as its logits, and these are drawn by
each expert's share (benchmarks/layer_timing.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.layer_timing import SKEWS, Step, draw_logits
from models.dispatch import LocalDispatcher
from models.dispatch.seam import nothing
from models.gated_experts import GatedExperts
from models.moe import MoELayer
from routers.base import Routing
from routers.losses import count_tokens
from routers.topk import TopK

try:
    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
except ImportError:
    raise ImportError("the comparison needs transformers: pip install -e .[hf]") from None

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


@dataclass(frozen=True)
class Size:
    """One layer and its batch: D, E, T, K, and how experts share tokens, a key of SKEWS."""

    dim: int
    num_experts: int
    num_tokens: int
    top_k: int
    load: str

    @property
    def batched_bytes(self) -> int:
        """Bytes of the first matrices that batched_mm copies."""
        return 4 * self.num_tokens * self.top_k * 2 * self.dim**2


class HuggingFaceLayer(nn.Module):
    """Gate and experts of a Qwen2-MoE sparse block with one of its experts implementations."""

    def __init__(self, size: Size, implementation: str) -> None:
        super().__init__()
        options: dict[str, Any] = {"experts_implementation": implementation, "norm_topk_prob": True}
        config = Qwen2MoeConfig(
            hidden_size=size.dim,
            moe_intermediate_size=size.dim,
            num_experts=size.num_experts,
            num_experts_per_tok=size.top_k,
            shared_expert_intermediate_size=1,
            **options,
        )
        block = Qwen2MoeSparseMoeBlock(config)
        self.gate, self.experts = block.gate, block.experts

    def forward(self, x_TD: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"]) -> tuple[Float[Tensor, "T D"]]:
        _, weights_TK, chosen_TK = self.gate(x_TD)
        return (self.experts(x_TD, chosen_TK, weights_TK),)

    def load(self, gate: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> None:
        for own, given in zip(self.parameters(), (gate, gate_up_proj, down_proj), strict=True):
            own.data.copy_(given)

    def gradients(self) -> list[Tensor]:
        """By gate and both weights, as Hugging Face lays them out."""
        return [_gradient(parameter) for parameter in self.parameters()]


class PlainDispatcher:
    """What the dispatcher does in the plainest torch: pick rows, multiply, add to each row's token."""

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " E"], "PlainPlan"]:
        meanwhile()
        flat = routing.expert_indices.reshape(-1)
        counts = count_tokens(routing.expert_indices, routing.scores.shape[1])
        order = flat.argsort(stable=True)[len(flat) - int(counts.sum()) :]
        plan = PlainPlan(order // routing.expert_indices.shape[1], routing.expert_weights.reshape(-1)[order], len(x_TD))
        return x_TD[plan.token], counts, plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: "PlainPlan") -> Float[Tensor, "T D"]:
        out_TD = y_ND.new_zeros(plan.num_tokens, y_ND.shape[1])
        return out_TD.index_add(0, plan.token, y_ND * plan.weight[:, None])


@dataclass(frozen=True)
class PlainPlan:
    """Token and weight of each row."""

    token: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    num_tokens: int


class PlainGatedExperts(GatedExperts):
    """The gate by autograd."""

    def activate(self, hidden: Float[Tensor, "N hidden"]) -> Float[Tensor, "N F"]:
        gate_NF, up_NF = hidden.chunk(2, -1)
        return F.silu(gate_NF) * up_NF


class OurLayer(MoELayer):
    """Our layer; `plain` is the one that `LocalDispatcher` and `GatedExperts` make faster."""

    experts: GatedExperts

    def __init__(self, size: Size, plain: bool = False) -> None:
        router = TopK(size.dim, size.num_experts, 0, top_k=size.top_k)
        experts = (PlainGatedExperts if plain else GatedExperts)(size.num_experts, size.dim, size.dim)
        super().__init__(router, experts, PlainDispatcher() if plain else LocalDispatcher())

    def load(self, gate: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> None:
        self.router.gate.weight.data.copy_(gate)
        self.experts.load_hugging_face(gate_up_proj, down_proj)

    def gradients(self) -> list[Tensor]:
        """By gate and both weights, as Hugging Face lays them out."""
        of_gate, of_w1, of_w2 = map(_gradient, (self.router.gate.weight, self.experts.w1, self.experts.w2))
        return [of_gate, of_w1.mT, of_w2.mT]


Layer = HuggingFaceLayer | OurLayer


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a backward pass came before"
    return parameter.grad


def draw_tokens(size: Size, generator: np.random.Generator) -> Float[Tensor, "T D"]:
    """Normal tokens whose first E coordinates are the gate's logits."""
    tokens = generator.standard_normal((size.num_tokens, size.dim))
    tokens[:, : size.num_experts] = draw_logits(size.num_tokens, size.num_experts, SKEWS[size.load], generator)
    return torch.from_numpy(tokens).float()


def build(size: Size, seed: int = 0) -> dict[str, Step]:
    """A step of every variant by name: ours, plain, and Hugging Face's; the same tokens and the same weights."""
    generator = np.random.default_rng(seed)
    x_TD = draw_tokens(size, generator)
    gradient_TD = torch.from_numpy(generator.standard_normal(x_TD.shape)).float()
    shapes = ((size.num_experts, 2 * size.dim, size.dim), (size.num_experts, size.dim, size.dim))
    weights = [torch.from_numpy(generator.normal(0, size.dim**-0.5, shape)).float() for shape in shapes]
    layers: dict[str, Layer] = {"ours": OurLayer(size), "plain": OurLayer(size, plain=True)}
    layers |= {name: HuggingFaceLayer(size, name) for name in IMPLEMENTATIONS}
    for layer in layers.values():
        layer.load(torch.eye(size.num_experts, size.dim), *weights)
    token_ids = torch.zeros(size.num_tokens, dtype=torch.int64)
    return {name: Step(layer, x_TD.clone().requires_grad_(), token_ids, gradient_TD) for name, layer in layers.items()}


def results(step: Step) -> list[Tensor]:
    """Output and all gradients of one step."""
    out_TD = step()
    assert step.x_TD.grad is not None
    return [out_TD, step.x_TD.grad, *step.layer.gradients()]


def difference(first: Step, second: Step) -> float:
    """Largest difference in output and gradients, as a share of the largest value of each."""
    pairs = zip(results(first), results(second), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
