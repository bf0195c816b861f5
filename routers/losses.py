"""Auxiliary losses as functions of what a gate put out; never kept in a global list."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.step_sum import sum_over_ranks


def load_balance_loss(scores: Float[Tensor, "T E"], expert_indices: Int[Tensor, "T K"]) -> Float[Tensor, ""]:
    """Load-balance loss E * sum_e f_e p_e (Fedus et al., 2021, arXiv 2101.03961, equation 4, for any K).

    f_e is the share of the routed token-expert pairs that expert e got (no gradient), p_e the mean score. It is 1 for
    balanced routing, whatever K. A batch without any routed token gives 0.

    f_e is counted over all ranks: the mean of their losses is then the loss of the whole micro-batch on one rank.
    """
    return balance_against(scores, sum_over_ranks(count_tokens(expert_indices, scores.shape[-1])))


def balance_against(scores: Float[Tensor, "T E"], counts: Int[Tensor, " E"]) -> Float[Tensor, ""]:
    """Load-balance loss E * sum_e f_e p_e whose f_e comes from given counts (E,), such as those of a whole global batch
    (Qiu et al., 2025, arXiv 2501.11873); p_e is the mean of these scores."""
    if not len(scores):
        return scores.sum()
    share = counts.to(scores.dtype) / counts.sum().clamp(min=1)
    return scores.shape[-1] * (share * scores.mean(0)).sum()


def sequence_balance_loss(
    scores: Float[Tensor, "T E"], expert_indices: Int[Tensor, "T K"], num_sequences: int
) -> Float[Tensor, ""]:
    """Load-balance loss of each sequence alone, averaged over them (DeepSeek-AI, 2024, arXiv 2412.19437, equations
    17-20; the weight alpha is not applied here).

    The T tokens are `num_sequences` sequences of equal length, one after the other.

    Raises:
        ValueError: T is not divisible by `num_sequences`.
    """
    num_tokens, num_experts = scores.shape
    if num_sequences < 1 or num_tokens % num_sequences:
        raise ValueError(f"{num_tokens} tokens cannot be split into {num_sequences} sequences of equal length")
    if not num_tokens:
        return scores.sum()
    # expert e of sequence n counts as expert n * E + e
    first_of_token = torch.arange(num_sequences, device=scores.device).repeat_interleave(num_tokens // num_sequences)
    shifted = torch.where(expert_indices < 0, -1, expert_indices + num_experts * first_of_token[:, None])
    counts_NE = count_tokens(shifted, num_sequences * num_experts).view(num_sequences, num_experts)
    share_NE = counts_NE.to(scores.dtype) / counts_NE.sum(-1, keepdim=True).clamp(min=1)
    mean_NE = scores.view(num_sequences, -1, num_experts).mean(1)
    return num_experts * (share_NE * mean_NE).sum(-1).mean()


def squared_variation(amounts: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation over experts (Shazeer et al., 2017, arXiv 1701.06538, equation 7); 0 if all are
    0."""
    return amounts.var(correction=0) / amounts.mean().square().clamp(min=torch.finfo(amounts.dtype).tiny)


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
