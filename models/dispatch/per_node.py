"""One copy of a token for each distinct remote node; a gateway there forwards it to the node's devices.

The gateway is the device with the sender's index in its own node, so that a node's devices share the forwarding
(DeepEP between nodes). Results are summed on each device, then at the gateway, then at home.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from models.dispatch.hop import Hop, Pairs, start_hop
from models.dispatch.per_device import addressed_pairs, sorted_by_slot, weighted_sum
from models.dispatch.seam import nothing
from models.dispatch.shard import ExpertShard
from routers.base import Routing


@dataclass(frozen=True, eq=False)
class PerNodePlan:
    """The way back of one dispatch.

    Attributes:
        between: the hop to the gateways; what stays in a node hops onto its own device there, which sends nothing.
        within: the hop from the gateways to the devices of their node.
        num_rows: copies that arrived here in the end.
        pairs: this device's (copy, slot) pairs, sorted by slot.
        rank: this device.
    """

    between: Hop
    within: Hop
    num_rows: int
    pairs: Pairs
    rank: int

    @property
    def rows_sent(self) -> Int[Tensor, " G"]:
        """(G,) copies sent to each device over both hops; of those that stay here, the second hop's."""
        crossing = self.between.rows_sent.clone()
        crossing[self.rank] = 0
        return crossing + self.within.rows_sent

    @property
    def metadata_bytes_sent(self) -> Int[Tensor, " G"]:
        """(G,) bytes sent beside them."""
        return self.between.metadata_bytes_sent + self.within.metadata_bytes_sent


class PerNodeDispatcher:
    """Sends a row for every distinct remote node of a token, from whose gateway it goes to every distinct device."""

    def __init__(self, shard: ExpertShard) -> None:
        self.shard = shard

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " C"], PerNodePlan]:
        """Rows (N, D) for this device's slots, sorted by slot; rows of each slot (C,); the plan."""
        shard = self.shard
        keys_of_node = shard.devices_per_node * shard.slots_per_device
        token, address, weight = addressed_pairs(shard, routing)
        node, place_in_node = address // keys_of_node, address % keys_of_node
        # in the own node this is the sender itself
        gateway = node * shard.devices_per_node + shard.rank % shard.devices_per_node
        to_gateways = Pairs(token, gateway * keys_of_node + place_in_node, weight)
        between = start_hop(x_TD, to_gateways, keys_of_node, shard.group)
        meanwhile()
        rows_RD, (row, place_in_node, weight) = between.receive()
        first_slot_of_node = shard.rank // shard.devices_per_node * keys_of_node
        to_devices = Pairs(row, first_slot_of_node + place_in_node, weight)
        within = start_hop(rows_RD, to_devices, shard.slots_per_device, shard.group)
        rows_RD, pairs = within.receive()
        pairs = sorted_by_slot(pairs)
        plan = PerNodePlan(between, within, len(rows_RD), pairs, shard.rank)
        return rows_RD[pairs.row], within.pairs_per_key, plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: PerNodePlan) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        at_gateway = plan.within.give_back(weighted_sum(y_ND, plan.pairs, plan.num_rows))
        return plan.between.give_back(at_gateway)
