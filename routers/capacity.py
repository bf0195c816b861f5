"""Expert capacity with token dropping (Lepikhin et al., 2020, arXiv 2006.16668): the papers' baselines drop."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from routers.base import Routing


def capacity(num_tokens: int, top_k: int, num_experts: int, factor: float, minimum: int = 4) -> int:
    """Tokens an expert may take: ceil(factor * T * K / E), at least `minimum` (4 in DeepSpeed's gate)."""
    if factor <= 0:
        raise ValueError(f"capacity factor must be positive, got {factor}")
    return max(minimum, math.ceil(factor * num_tokens * top_k / num_experts))


def drop_over_capacity(routing: Routing, limit: int) -> Routing:
    """Drop each expert's choices beyond `limit`: index -1 and weight 0.

    All first choices are served before all second ones, and within a choice tokens in batch order.
    """
    kept = _queue_position(routing.expert_indices, routing.scores.shape[-1]) < limit
    return routing._replace(
        expert_weights=routing.expert_weights * kept,
        expert_indices=torch.where(kept, routing.expert_indices, -1),
    )


def _queue_position(expert_indices: Int[Tensor, "T K"], num_experts: int) -> Int[Tensor, "T K"]:
    """How many earlier choices of the same expert stand before each choice (T, K)."""
    by_choice = expert_indices.T.reshape(-1)
    order = by_choice.argsort(stable=True)
    sorted_experts = by_choice[order]
    first_of_expert = torch.searchsorted(sorted_experts, sorted_experts)
    position = torch.empty_like(by_choice)
    position[order] = torch.arange(by_choice.numel(), device=by_choice.device) - first_of_expert
    return position.view(expert_indices.shape[::-1]).T
