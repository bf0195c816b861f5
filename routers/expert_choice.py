"""Expert choice (Zhou et al., 2022, arXiv 2202.09368): every expert takes its best-scored tokens, so loads are equal by
construction and a token may have any number of experts.

A token's experts depend on later tokens of the batch: it cannot generate text, and its losses are no measure of
quality.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router


class ExpertChoice(Router):
    """Each expert takes T * K / E tokens, rounded up: K is the mean number of experts a token (the paper's capacity
    factor c). Column e of the choices is expert e or -1."""

    causal: ClassVar[bool] = False

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T E"]:
        num_tokens, num_experts = scores.shape
        tokens_per_expert = -(-num_tokens * self.top_k // num_experts)
        taken_ET = scores.T.topk(tokens_per_expert, dim=-1).indices
        chosen = torch.full_like(scores, -1, dtype=torch.int64)
        experts = torch.arange(num_experts, device=scores.device)
        return chosen.scatter_(0, taken_ET.T, experts.expand(tokens_per_expert, -1))

    @property
    def num_choices(self) -> int:
        return self.num_experts
