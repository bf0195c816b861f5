"""Sinkhorn routing (Clark et al., 2022, arXiv 2202.01169, S-BASE; in Megatron-LM's form): in training, experts are
chosen by scores that were rescaled until all experts hold equal mass; at evaluation by the plain scores.

In training a token's experts depend on the whole batch, at evaluation on the token alone: held-out losses are a measure
of quality, training losses are not quite.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Routing
from routers.topk import TopK


class Sinkhorn(TopK):
    """Top-k of the balanced scores; weights are the plain softmax scores, sigmoid ones for K = 1, as in Megatron-LM.

    Args:
        num_iterations: rescalings of all rows and columns. Ours: a fixed number, where Megatron-LM stops at a tolerance
            and waits for the device to know.

    Raises:
        ValueError: fewer than one iteration.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, num_iterations: int = 20, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
        self.num_iterations = num_iterations

    def score(self, logits: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        return logits.sigmoid() if self.top_k == 1 else logits.softmax(-1)

    def route(self, logits: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        scores = self.score(logits)
        ranked = balanced_plan(logits.detach(), self.num_iterations) if self.training else scores.detach()
        chosen = self.select(ranked, token_ids)
        return Routing(scores, self.weigh(scores, chosen), chosen)


def balanced_plan(logits: Float[Tensor, "T E"], num_iterations: int) -> Float[Tensor, "T E"]:
    """exp(logits) with rows and columns rescaled: every token holds mass 1/T, every expert nearly 1/E."""
    num_tokens, num_experts = logits.shape
    # a factor per row changes nothing, and this one keeps exp in range
    kernel_TE = logits.softmax(-1)
    tiny = torch.finfo(kernel_TE.dtype).tiny
    column_E = kernel_TE.new_ones(num_experts)
    row_T = kernel_TE.new_ones(num_tokens)
    for _ in range(num_iterations):
        column_E = 1 / (num_experts * (row_T @ kernel_TE)).clamp(min=tiny)
        row_T = 1 / (num_tokens * (kernel_TE @ column_E)).clamp(min=tiny)
    return row_T[:, None] * kernel_TE * column_E
