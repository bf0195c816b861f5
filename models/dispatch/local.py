"""Bring tokens to their experts and back.

Seam: `dispatch(x, routing) -> (rows, tokens_per_expert, plan)` and `combine(rows, plan) -> x`; no parameters. The plan
is what combine needs and what counts the bytes moved.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Routing


@dataclass(frozen=True)
class LocalPlan:
    """Where each dispatched row came from.

    Attributes:
        token: (N,) the token of each row.
        weight: (N,) the router's weight of the row.
        num_tokens: T.
    """

    token: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    num_tokens: int


class LocalDispatcher:
    """All experts on this device: sort token-expert pairs by expert, no copy leaves the device."""

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " E"], LocalPlan]:
        """Rows (N, D) sorted by expert, tokens of each expert (E,), and the plan; choices of -1 are left out."""
        top_k = routing.expert_indices.shape[1]
        flat = routing.expert_indices.reshape(-1)
        order = flat.argsort(stable=True)
        num_experts = routing.scores.shape[1]
        # choices of -1 sort first, so they are a prefix that is cut off
        counts = torch.bincount(flat + 1, minlength=num_experts + 1)
        order = order[counts[0] :]
        token = order // top_k
        plan = LocalPlan(token, routing.expert_weights.reshape(-1)[order].to(x_TD.dtype), x_TD.shape[0])
        return x_TD[token], counts[1:], plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: LocalPlan) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        weighted_ND = y_ND * plan.weight[:, None]
        return weighted_ND.new_zeros(plan.num_tokens, y_ND.shape[1]).index_add(0, plan.token, weighted_ND)
