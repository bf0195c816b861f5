"""One layer's experts over the devices, as one device sees them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int, Integer
from torch import Tensor

from placement.topology import Placement, Topology
from placement.volume import nearest_replica


@dataclass(frozen=True, eq=False)
class ExpertShard:
    """Who holds what, for tokens that start on device `rank`.

    Attributes:
        rank: this device's number g; device g is rank g of `group`.
        devices_per_node: G / N; device g lives on node g // devices_per_node.
        slots: (G, C) expert in each slot, -1 for an empty one.
        address: (E + 1,) where a token that starts here finds an expert: device * C + slot, of replicas the nearest.
            The last entry, G * C, stands for no expert (-1).
        group: the G devices.
    """

    rank: int
    devices_per_node: int
    slots: Integer[np.ndarray, "G C"]
    address: Int[Tensor, " E1"]
    group: dist.ProcessGroup

    @property
    def num_devices(self) -> int:
        """G."""
        return self.slots.shape[0]

    @property
    def slots_per_device(self) -> int:
        """C."""
        return self.slots.shape[1]

    def addresses(self, expert_indices: Int[Tensor, "T K"]) -> Int[Tensor, " TK"]:
        """The address of every choice, token by token."""
        return self.address[expert_indices.reshape(-1)]


def make_shard(
    placement: Placement, topology: Topology, layer: int, group: dist.ProcessGroup, device: torch.device
) -> ExpertShard:
    """The shard of one layer for this process.

    Raises:
        ValueError: placement, topology and process group differ in their number of devices.
    """
    sizes = (placement.num_devices, topology.num_devices, dist.get_world_size(group))
    if len(set(sizes)) != 1:
        raise ValueError(f"the placement has {sizes[0]} devices, the topology {sizes[1]}, the process group {sizes[2]}")
    rank, slots_GC = dist.get_rank(group), placement.slots[layer]
    device_E = nearest_replica(placement.holds[layer], topology)[rank, :-1]
    # a device's slot of each expert; where it holds none, argmax finds nothing and is not asked
    slot_E = (slots_GC[device_E] == np.arange(len(device_E))[:, None]).argmax(1)
    address_E1 = np.append(device_E * slots_GC.shape[1] + slot_E, slots_GC.size)
    return ExpertShard(
        rank, topology.devices_per_node, slots_GC, torch.from_numpy(address_E1.astype(np.int64)).to(device), group
    )
