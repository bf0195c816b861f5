"""Softmax top-k routing that is balanced over the global batch only (Qiu et al., 2025, arXiv 2501.11873): the shares f
of the load-balance loss are counted over all ranks and over the micro-batches of an optimiser step so far."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from routers.base import Routing
from routers.losses import balance_against, count_tokens
from routers.step_sum import StepSum, sum_over_ranks
from routers.topk import TopK


class TopKGlobal(TopK):
    """Top-k whose load-balance loss sees the global batch's loads; outside training those of the batch at hand.

    With one process and one micro-batch a step it is the usual loss.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.step_counts = StepSum()

    def balance(self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int) -> Float[Tensor, ""]:
        if not self.training:
            return super().balance(logits, routing, num_sequences)
        counts = sum_over_ranks(count_tokens(routing.expert_indices, self.num_experts))
        return balance_against(routing.scores, self.step_counts.add(counts))

    def finish_step(self) -> None:
        self.step_counts.take()
