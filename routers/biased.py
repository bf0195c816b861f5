"""Sigmoid top-k with a bias per expert that steers the choice only (Wang et al., 2024, arXiv 2408.15664, equation 3):
what the methods share that balance without a loss."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.sigmoid import Sigmoid


class Biased(Sigmoid):
    """The K experts with the highest sum of score and bias; weights come from the scores alone.

    Attributes:
        bias: (E,) part of every checkpoint; a subclass moves it in `finish_step`.
    """

    bias: Float[Tensor, " E"]

    def __init__(self, dim: int, num_experts: int, layer: int, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.register_buffer("bias", torch.zeros(num_experts))

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        return super().select(scores + self.bias, token_ids)
