"""Quantile balancing (Jianlin Su, 2026, https://kexue.fm/archives/11619): after each optimiser step every expert's bias
is set, not nudged, to the value at which the step's tokens would have filled the expert's even share.

Balanced routing is a linear program over token-expert pairs; its dual has a threshold alpha_t per token and beta_e per
expert, and one step of coordinate descent takes two quantiles. There is no step size.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Routing
from routers.biased import Biased
from routers.step_sum import StepSum, sum_over_ranks


class Quantile(Biased):
    """Sigmoid top-k whose bias is the negated quantile of each expert's margin over the tokens' thresholds.

    Over micro-batches and ranks the biases found are averaged by tokens, which is exact for one. Ours: the bias is
    centred at 0, which changes no choice.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.step_bias, self.step_tokens = StepSum(), StepSum()

    def route(self, logits: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        routing = super().route(logits, token_ids)
        if self.training and len(logits) and self.top_k < self.num_experts:
            balancing = balancing_bias(routing.scores.detach(), self.bias, self.top_k)
            self.step_bias.add(len(logits) * balancing)
            self.step_tokens.add(balancing.new_tensor(len(logits)))
        return routing

    @torch.no_grad()
    def finish_step(self) -> None:
        weighted, tokens = self.step_bias.take(), self.step_tokens.take()
        if weighted is not None and tokens is not None:
            mean = sum_over_ranks(weighted) / sum_over_ranks(tokens)
            self.bias.copy_(mean - mean.mean())


def balancing_bias(scores: Float[Tensor, "T E"], bias: Float[Tensor, " E"], top_k: int) -> Float[Tensor, " E"]:
    """The bias (E,) at which T * K / E tokens (rounded down) exceed their threshold at each expert; needs K < E."""
    num_tokens, num_experts = scores.shape
    # alpha_t: what an expert must exceed to be among the K best of token t
    threshold = (scores + bias).topk(top_k + 1, dim=-1).values[:, -1:]
    margins = scores - threshold
    # beta_e: the (1 - K/E)-quantile of expert e's margins
    rank = max(1, num_tokens - num_tokens * top_k // num_experts)
    return -margins.T.contiguous().kthvalue(rank, dim=-1).values
