"""ReLU routing, ReMoE (Wang et al., 2024, arXiv 2412.14711): an expert is active where its gate is positive, and an L1
penalty whose strength adapts keeps K of them active on average. The choice is differentiable: no top-k cut.

A token may have any number of experts, none included.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router, Routing
from routers.losses import count_tokens
from routers.step_sum import StepSum, num_ranks, sum_over_ranks


class Relu(Router):
    """Experts with a positive gate, weighted by it. Column e of the choices is expert e or -1.

    Ours: each layer steers its own penalty, where the paper has one for all layers, and lambda stays within lambda_0
    and 1 / lambda_0, or it could become 0 or infinite for good. A layer whose gates have all closed does not reopen by
    itself: no gradient reaches it.

    Args:
        penalty: lambda_0, the L1 penalty's first strength.
        growth: alpha, factor by which it grows or shrinks after each optimiser step.

    Attributes:
        strength: () lambda, part of every checkpoint.

    Raises:
        ValueError: a penalty outside 0..1 (exclusive), or a growth not above 1.
    """

    strength: Float[Tensor, ""]

    def __init__(
        self, dim: int, num_experts: int, layer: int, *, penalty: float = 1e-8, growth: float = 1.2, **gate: Any
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if not 0 < penalty < 1 or growth <= 1:
            raise ValueError(f"need 0 < penalty < 1 and growth > 1, got penalty={penalty}, growth={growth}")
        self.penalty, self.growth = penalty, growth
        self.register_buffer("strength", torch.tensor(penalty))
        self.step_surplus = StepSum()

    def score(self, logits: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        return logits.relu()

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T E"]:
        return torch.where(scores > 0, torch.arange(self.num_experts, device=scores.device), -1)

    def route(self, logits: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        routing = super().route(logits, token_ids)
        if self.training:
            self.step_surplus.add((routing.expert_indices >= 0).sum() - self.top_k * len(logits))
        return routing

    @property
    def num_choices(self) -> int:
        return self.num_experts

    def losses(
        self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int = 1
    ) -> dict[str, Float[Tensor, ""]]:
        """Those of every router, and `sparsity`: lambda times the load-balanced L1 norm."""
        found = super().losses(logits, routing, num_sequences)
        return found | {"sparsity": self.strength * balanced_l1(routing, self.top_k)}

    @torch.no_grad()
    def finish_step(self) -> None:
        """lambda *= alpha^sign(target sparsity - sparsity), over the global batch."""
        surplus = self.step_surplus.take()
        if surplus is not None:
            # more experts than K a token: too little sparsity
            self.strength *= self.growth ** sum_over_ranks(surplus).sign()
            self.strength.clamp_(self.penalty, 1 / self.penalty)


def balanced_l1(routing: Routing, top_k: int) -> Float[Tensor, ""]:
    """Mean L1 norm of the scores, expert e's part weighted by its load f_e = E / (K T) * tokens_e."""
    num_tokens, num_experts = routing.scores.shape
    counts = sum_over_ranks(count_tokens(routing.expert_indices, num_experts)).to(routing.scores.dtype)
    load = counts * num_experts / (top_k * max(1, num_tokens * num_ranks()))
    return (load * routing.scores.sum(0)).sum() / max(1, num_tokens)
