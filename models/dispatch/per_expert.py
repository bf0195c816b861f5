"""One copy of a token for each of its experts, even two on one device (Gale et al., 2022, arXiv 2211.15841:
MegaBlocks)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.dispatch.exchange import Exchange, exchange_counts
from models.dispatch.seam import nothing
from models.dispatch.shard import ExpertShard
from routers.base import Routing
from routers.losses import count_tokens


@dataclass(frozen=True, eq=False)
class PerExpertPlan:
    """The way back of one dispatch.

    Attributes:
        token: (S,) the token of each copy sent, sorted by destination and expert.
        weight: (S,) the router's weight of each copy.
        num_tokens: T.
        exchange: of the copies.
        order: (R,) copies that arrived, sorted by expert.
        rows_sent: (G,) copies sent to each device, the own one included.
        metadata_bytes_sent: (G,) bytes sent beside them.
    """

    token: Int[Tensor, " S"]
    weight: Float[Tensor, " S"]
    num_tokens: int
    exchange: Exchange
    order: Int[Tensor, " R"]
    rows_sent: Int[Tensor, " G"]
    metadata_bytes_sent: Int[Tensor, " G"]


class PerExpertDispatcher:
    """Sends a row for every choice; weights stay at home and are applied to what returns."""

    def __init__(self, shard: ExpertShard) -> None:
        self.shard = shard

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " C"], PerExpertPlan]:
        """Rows (N, D) for this device's slots, sorted by slot; rows of each slot (C,); the plan."""
        shard, num_tokens = self.shard, len(x_TD)
        address = shard.addresses(routing.expert_indices)
        order = address.argsort(stable=True)
        sent_GC = count_tokens(address[:, None], shard.slots.size + 1)[:-1].view(shard.slots.shape)
        received_GC = exchange_counts(sent_GC, shard.group)
        send, receive = torch.stack([sent_GC.sum(1), received_GC.sum(1)]).tolist()
        # choices of -1 have the last address: they are a tail that stays behind
        order = order[: sum(send)]
        token = order // routing.expert_indices.shape[1]
        exchange = Exchange(send, receive, shard.group)
        travelling_RD = exchange.start(x_TD[token])
        meanwhile()
        rows_RD = exchange.wait(travelling_RD)
        slots = torch.arange(shard.slots_per_device, device=x_TD.device).repeat(shard.num_devices)
        by_slot = slots.repeat_interleave(received_GC.reshape(-1), output_size=len(rows_RD)).argsort(stable=True)
        weight = routing.expert_weights.reshape(-1)[order]
        metadata = torch.full_like(sent_GC[:, 0], sent_GC[0].nbytes)
        plan = PerExpertPlan(token, weight, num_tokens, exchange, by_slot, sent_GC.sum(1), metadata)
        return rows_RD[by_slot], received_GC.sum(0), plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: PerExpertPlan) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        y_RD = torch.empty_like(y_ND).index_copy(0, plan.order, y_ND)
        returned_SD = plan.exchange.back(y_RD) * plan.weight[:, None]
        return returned_SD.new_zeros(plan.num_tokens, y_ND.shape[1]).index_add(0, plan.token, returned_SD)
