"""Auxiliary losses as functions of what a gate put out; never kept in a global list."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def load_balance_loss(scores: Float[Tensor, "T E"], expert_indices: Int[Tensor, "T K"]) -> Float[Tensor, ""]:
    """Load-balance loss E * sum_e f_e p_e (Fedus et al., 2021, arXiv 2101.03961, equation 4, for any K).

    f_e is the share of the routed token-expert pairs that expert e got (no gradient), p_e the mean score. It is 1 for
    balanced routing, whatever K. A batch without any routed token gives 0.
    """
    if not len(scores):
        return scores.sum()
    num_experts = scores.shape[-1]
    counts = count_tokens(expert_indices, num_experts)
    share = counts.to(scores.dtype) / counts.sum().clamp(min=1)
    return num_experts * (share * scores.mean(0)).sum()


def z_loss(logits: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Router z-loss mean_t logsumexp(logits_t)^2 (Zoph et al., 2022, arXiv 2202.08906, equation 5); 0 if empty."""
    if not len(logits):
        return logits.float().sum()
    return logits.float().logsumexp(-1).square().mean()


def count_tokens(expert_indices: Int[Tensor, "T K"], num_experts: int) -> Int[Tensor, " E"]:
    """Tokens routed to each expert (E,), choices of -1 left out; no host synchronisation."""
    counts = expert_indices.new_zeros(num_experts + 1)
    # row E collects the -1 choices and is cut off
    absent_as_last = torch.where(expert_indices < 0, num_experts, expert_indices).reshape(-1)
    return counts.scatter_add_(0, absent_as_last, torch.ones_like(absent_as_last))[:-1]
