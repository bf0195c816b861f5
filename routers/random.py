"""Random routing: K distinct experts a token, drawn anew each step. The control that no gate beats for balance and
that every gate must beat for quality."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router


class Random(Router):
    """K distinct experts a token from an explicit generator, whose state is part of every checkpoint.

    Args:
        seed: seed of the draws; layers draw independently.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, seed: int = 0, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.generator = torch.Generator().manual_seed(seed * 1_000 + layer)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        drawn = torch.rand(scores.shape, generator=self.generator)
        return drawn.topk(self.top_k, dim=-1).indices.to(scores.device)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())
