"""Uniform routing: perfectly balanced and blind to the token. For timing a system without convergence effects."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router


class Uniform(Router):
    """Token t takes experts t*K .. t*K+K-1 modulo E, so loads differ by at most one token."""

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        num_choices = scores.shape[0] * self.top_k
        in_turn = torch.arange(num_choices, device=scores.device) % self.num_experts
        return in_turn.view(-1, self.top_k)
