"""One copy of a token for each distinct device of its experts; the receiver expands it, and one sum returns.

(Luo et al., 2025, arXiv 2505.13345: Occult; DeepEP within a node.)
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from models.dispatch.hop import Hop, Pairs, start_hop
from models.dispatch.seam import nothing
from models.dispatch.shard import ExpertShard
from routers.base import Routing


@dataclass(frozen=True, eq=False)
class PerDevicePlan:
    """The way back of one dispatch.

    Attributes:
        hop: how the copies came.
        num_rows: copies that arrived here.
        pairs: this device's (copy, slot) pairs, sorted by slot.
    """

    hop: Hop
    num_rows: int
    pairs: Pairs

    @property
    def rows_sent(self) -> Int[Tensor, " G"]:
        """(G,) copies sent to each device, the own one included."""
        return self.hop.rows_sent

    @property
    def metadata_bytes_sent(self) -> Int[Tensor, " G"]:
        """(G,) bytes sent beside them."""
        return self.hop.metadata_bytes_sent


class PerDeviceDispatcher:
    """Sends a row for every distinct device of a token, and the weights with it."""

    def __init__(self, shard: ExpertShard) -> None:
        self.shard = shard

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " C"], PerDevicePlan]:
        """Rows (N, D) for this device's slots, sorted by slot; rows of each slot (C,); the plan."""
        hop = start_hop(x_TD, addressed_pairs(self.shard, routing), self.shard.slots_per_device, self.shard.group)
        meanwhile()
        rows_RD, pairs = hop.receive()
        pairs = sorted_by_slot(pairs)
        return rows_RD[pairs.row], hop.pairs_per_key, PerDevicePlan(hop, len(rows_RD), pairs)

    def combine(self, y_ND: Float[Tensor, "N D"], plan: PerDevicePlan) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        return plan.hop.give_back(weighted_sum(y_ND, plan.pairs, plan.num_rows))


def addressed_pairs(shard: ExpertShard, routing: Routing) -> Pairs:
    """Every choice as a (token, address) pair; choices of -1 are left out."""
    chosen = routing.expert_indices.reshape(-1)
    present = (chosen >= 0).nonzero()[:, 0]
    address = shard.address[chosen[present]]
    return Pairs(present // routing.expert_indices.shape[1], address, routing.expert_weights.reshape(-1)[present])


def sorted_by_slot(pairs: Pairs) -> Pairs:
    """The pairs that arrived, sorted by slot."""
    order = pairs.key.argsort(stable=True)
    return Pairs(*(field[order] for field in pairs))


def weighted_sum(y_ND: Float[Tensor, "N D"], pairs: Pairs, num_rows: int) -> Float[Tensor, " rows D"]:
    """What this device's experts put out for each copy, weighted and summed, in the weights' precision."""
    weighted_ND = y_ND * pairs.weight[:, None]
    return weighted_ND.new_zeros(num_rows, y_ND.shape[1]).index_add(0, pairs.row, weighted_ND)
