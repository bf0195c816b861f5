"""Hash routing (Roller et al., 2021, arXiv 2106.04426): a fixed random table says which experts a token id has.

Nothing is learned: the gate is there for the router's interface alone, and hidden states change no choice.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router


class Hash(Router):
    """K distinct experts for each token id, all weighted 1/K; `renormalise` has no meaning here.

    Args:
        seed: of the table; layers draw independently. The table is part of every checkpoint.
        num_buckets: rows of the table; token ids beyond wrap around.

    Raises:
        ValueError: fewer than one bucket; when routing, no token ids.
    """

    table: Int[Tensor, "buckets K"]

    def __init__(
        self, dim: int, num_experts: int, layer: int, *, seed: int = 0, num_buckets: int = 65_536, **gate: Any
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if num_buckets < 1:
            raise ValueError(f"num_buckets must be at least 1, got {num_buckets}")
        generator = torch.Generator().manual_seed(seed * 1_000 + layer)
        drawn = torch.rand(num_buckets, num_experts, generator=generator, device="cpu")
        self.register_buffer("table", drawn.topk(self.top_k, dim=-1).indices)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        if token_ids is None:
            raise ValueError("hash routing needs token_ids: it chooses experts by them alone")
        return self.table[token_ids % len(self.table)]

    def weigh(self, scores: Float[Tensor, "T E"], chosen: Int[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        return torch.full_like(chosen, 1 / self.top_k, dtype=scores.dtype)
