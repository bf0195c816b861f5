"""All experts on this device: token-expert pairs are sorted by expert, and a token's outputs are summed, weighted.

Both ways are one gather and one segmented sum (`embedding_bag`), each the gradient of the other, so no copy of all rows
is made between the experts and the layer's output. Sums run over a token's choices in their order: the same on every
run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.dispatch.seam import nothing
from routers.base import Routing
from routers.losses import count_tokens


@dataclass(frozen=True)
class LocalPlan:
    """Where each dispatched row came from and where each choice went.

    Attributes:
        token: (N,) the token of each row; rows are sorted by expert, then by token.
        choice: (N,) the choice that each row computes; choices are numbered token by token.
        row: (N,) the row of each choice, so `row[choice]` counts up.
        first: (T,) each token's first choice.
        weight: (N,) the router's weight of each choice.
        absent: (N, 1) rows that no expert computes, after all others; None = there are none.
    """

    token: Int[Tensor, " N"]
    choice: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    first: Int[Tensor, " T"]
    weight: Float[Tensor, " N"]
    absent: Bool[Tensor, "N 1"] | None = None

    @property
    def rows_sent(self) -> Int[Tensor, " 1"]:
        """(1,) rows that an expert computes, all on this device."""
        rows = torch.full((1,), len(self.token), device=self.token.device)
        return rows if self.absent is None else rows - self.absent.sum(0)

    @property
    def metadata_bytes_sent(self) -> Int[Tensor, " 1"]:
        """(1,) bytes sent beside the rows: none."""
        return torch.zeros_like(self.rows_sent)


class LocalDispatcher:
    """All experts on this device; no copy leaves it.

    Args:
        cut_absent: leave out choices of -1, whose number the host must then know: free on a CPU, a wait for the device
            elsewhere. Otherwise their rows stay, zero, behind those of all experts, and what comes back for them is
            ignored. None = cut on a CPU.
    """

    def __init__(self, cut_absent: bool | None = None) -> None:
        self.cut_absent = cut_absent

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " E"], LocalPlan]:
        """Rows (N, D) sorted by expert, tokens of each expert (E,), and the plan; `meanwhile` is called once."""
        meanwhile()
        cut = x_TD.device.type == "cpu" if self.cut_absent is None else self.cut_absent
        plan = (_plan_cut if cut else _plan_whole)(routing)
        rows_ND = Spread.apply(x_TD, plan.token, plan.row, plan.first)
        if plan.absent is not None:
            rows_ND = rows_ND.masked_fill(plan.absent, 0)
        return rows_ND, count_tokens(routing.expert_indices, routing.scores.shape[1]), plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: LocalPlan) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        if plan.absent is not None:
            y_ND = y_ND.masked_fill(plan.absent, 0)
        # half precision outputs under single precision weights are summed in single precision
        y_ND = y_ND.to(torch.promote_types(y_ND.dtype, plan.weight.dtype))
        return Sum.apply(y_ND, plan.weight, plan.token, plan.choice, plan.row, plan.first)


def _plan_cut(routing: Routing) -> LocalPlan:
    """Only choices that name an expert."""
    is_present = routing.expert_indices >= 0
    if is_present.all():
        return replace(_plan_whole(routing), absent=None)
    flat, present = routing.expert_indices.reshape(-1), is_present.reshape(-1).nonzero()[:, 0]
    choice, of_token = flat[present].argsort(stable=True), is_present.sum(-1)
    return LocalPlan(
        token=present[choice] // is_present.shape[1],
        choice=choice,
        row=_inverse(choice),
        first=of_token.cumsum(0) - of_token,
        weight=routing.expert_weights.reshape(-1)[present],
    )


def _plan_whole(routing: Routing) -> LocalPlan:
    """All choices, so that every size is known without waiting for the device."""
    (num_tokens, top_k), num_experts = routing.expert_indices.shape, routing.scores.shape[1]
    flat = routing.expert_indices.reshape(-1)
    # -1 as one expert more sorts last
    expert, choice = torch.where(flat < 0, num_experts, flat).sort(stable=True)
    return LocalPlan(
        token=choice // top_k,
        choice=choice,
        row=_inverse(choice),
        first=torch.arange(num_tokens, device=flat.device) * top_k,
        weight=routing.expert_weights.reshape(-1),
        absent=(expert == num_experts)[:, None],
    )


def _inverse(order: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class Spread(torch.autograd.Function):
    """Tokens (T, D) to one copy a row (N, D); its gradient sums a token's rows."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token: Tensor, row: Tensor, first: Tensor) -> Tensor:
        ctx.save_for_backward(row, first)
        return x_TD.index_select(0, token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor | None, ...]:
        row, first = ctx.saved_tensors
        return F.embedding_bag(row, gradient_ND.contiguous(), first, mode="sum"), None, None, None


class Sum(torch.autograd.Function):
    """Rows (N, D) and weights of choices (N,) to weighted sums of each token (T, D)."""

    @staticmethod
    def forward(
        ctx: Any, y_ND: Tensor, weight: Tensor, token: Tensor, choice: Tensor, row: Tensor, first: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_ND, weight, token, choice, row)
        return F.embedding_bag(row, y_ND, first, mode="sum", per_sample_weights=weight.to(y_ND.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor | None, ...]:
        y_ND, weight, token, choice, row = ctx.saved_tensors
        gradient_ND = gradient_TD.index_select(0, token)
        of_weight = torch.linalg.vecdot(gradient_ND, y_ND)[row]
        return gradient_ND.mul_(weight[choice, None]), of_weight.to(weight.dtype), None, None, None, None
