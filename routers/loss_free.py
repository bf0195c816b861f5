"""Loss-free balancing (Wang et al., 2024, arXiv 2408.15664): a bias per expert on the selection score, moved a fixed
step against the load after each optimiser step. Used by DeepSeek-V3."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Routing
from routers.biased import Biased
from routers.losses import count_tokens
from routers.step_sum import StepSum, sum_over_ranks


class LossFree(Biased):
    """Sigmoid top-k whose bias follows the loads of the global batch.

    Args:
        update_rate: u, step of the bias in units of a sigmoid score.

    Raises:
        ValueError: a negative update rate.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, update_rate: float = 0.001, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if update_rate < 0:
            raise ValueError(f"update_rate must not be negative, got {update_rate}")
        self.update_rate = update_rate
        self.step_counts = StepSum()

    def route(self, logits: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        routing = super().route(logits, token_ids)
        if self.training:
            self.step_counts.add(count_tokens(routing.expert_indices, self.num_experts))
        return routing

    @torch.no_grad()
    def finish_step(self) -> None:
        """b_i += u * sign(mean load - load_i): algorithm 1."""
        counts = self.step_counts.take()
        if counts is not None:
            loads = sum_over_ranks(counts).to(self.bias.dtype)
            self.bias += self.update_rate * (loads.mean() - loads).sign()
