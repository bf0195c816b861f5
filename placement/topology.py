"""Where experts can live (`Topology`) and where they do live (`Placement`)."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Integer


@dataclass(frozen=True)
class Topology:
    """A cluster of equal nodes; device g lives on node g // devices_per_node.

    Attributes:
        nodes: N.
        devices_per_node: G / N.
        intra_node_bandwidth: bytes/s that one device can send to the other devices of its node.
        inter_node_bandwidth: bytes/s that one node can send to the others, all its network cards together.
        intra_node_latency: seconds before the first byte of a message inside a node arrives.
        inter_node_latency: seconds before the first byte of a message between nodes arrives.

    Raises:
        ValueError: a count below 1, a bandwidth not positive, a latency negative or not finite.
    """

    nodes: int
    devices_per_node: int
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    intra_node_latency: float
    inter_node_latency: float

    def __post_init__(self) -> None:
        for name in ("nodes", "devices_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("intra_node_bandwidth", "inter_node_bandwidth"):
            # the negated comparison also refuses NaN
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive (bytes/s), got {getattr(self, name)}")
        for name in ("intra_node_latency", "inter_node_latency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative (s), got {getattr(self, name)}")

    @property
    def num_devices(self) -> int:
        """G."""
        return self.nodes * self.devices_per_node

    @property
    def node_of_device(self) -> Int[np.ndarray, " G"]:
        """Node on which each device lives."""
        return np.arange(self.num_devices) // self.devices_per_node


@dataclass(frozen=True, eq=False)
class Placement:
    """Which expert each slot of each device holds.

    Attributes:
        slots: (L, G, C) expert held by slot c of device g, -1 for an empty slot; a replica is an expert that
            several devices hold. The order of a device's slots has no meaning.

    Raises:
        ValueError: an expert below the highest one is held nowhere, or one is held twice on a device.
    """

    slots: Integer[np.ndarray, "L G C"]

    def __post_init__(self) -> None:
        if self.slots.ndim != 3 or 0 in self.slots.shape:
            raise ValueError(f"a placement needs slots (L, G, C), none of them 0; got {self.slots.shape}")
        if not np.issubdtype(self.slots.dtype, np.integer):
            raise ValueError(f"slots must hold integers, got {self.slots.dtype}")
        if self.slots.min() < -1 or self.slots.max() < 0:
            raise ValueError(f"slots hold experts from 0 or -1 for none, got {self.slots.min()}..{self.slots.max()}")
        self._refuse_doubles()
        missing = np.argwhere(self.num_replicas == 0)
        if missing.size:
            layer, expert = missing[0]
            raise ValueError(f"layer {layer}: expert {expert} of {self.num_experts} is held by no device")

    def _refuse_doubles(self) -> None:
        in_order = np.sort(self.slots, axis=-1)
        double = np.argwhere((in_order[..., 1:] == in_order[..., :-1]) & (in_order[..., 1:] >= 0))
        if double.size:
            layer, device, slot = double[0]
            expert = in_order[layer, device, slot]
            raise ValueError(f"layer {layer}: device {device} holds expert {expert} twice")

    @property
    def num_layers(self) -> int:
        """L."""
        return self.slots.shape[0]

    @property
    def num_devices(self) -> int:
        """G."""
        return self.slots.shape[1]

    @property
    def slots_per_device(self) -> int:
        """C."""
        return self.slots.shape[2]

    @property
    def num_experts(self) -> int:
        """E: one more than the highest expert held."""
        return int(self.slots.max()) + 1

    @cached_property
    def holds(self) -> Bool[np.ndarray, "L G E"]:
        """Whether a device holds an expert."""
        # column E collects the empty slots (-1) and is cut off again
        held = np.zeros((*self.slots.shape[:2], self.num_experts + 1), bool)
        np.put_along_axis(held, self.slots.astype(np.int64) % (self.num_experts + 1), True, axis=-1)
        return held[..., :-1]

    @cached_property
    def num_replicas(self) -> Int[np.ndarray, "L E"]:
        """Number of devices that hold each expert."""
        return self.holds.sum(axis=1)

    @property
    def device_of_expert(self) -> Int[np.ndarray, "L E"]:
        """The device of each expert.

        Raises:
            ValueError: an expert has replicas, so there is no one device.
        """
        if self.num_replicas.max() > 1:
            layer, expert = np.argwhere(self.num_replicas > 1)[0]
            replicas = self.num_replicas[layer, expert]
            raise ValueError(f"layer {layer}: expert {expert} has {replicas} replicas, so no one device")
        return self.holds.argmax(axis=1)


def check_fits(num_experts: int, num_devices: int, slots_per_device: int) -> None:
    """Refuse a shape in which experts without replicas cannot occupy every device.

    Raises:
        ValueError: more devices than experts, or fewer slots than experts.
    """
    if num_devices > num_experts:
        raise ValueError(f"{num_devices} devices for {num_experts} experts: some would hold none")
    check_slots(num_experts, num_devices, slots_per_device)


def check_slots(num_experts: int, num_devices: int, slots_per_device: int) -> None:
    """Refuse fewer slots than experts; with replicas there may be more devices than experts.

    Raises:
        ValueError: fewer slots than experts.
    """
    if num_devices * slots_per_device < num_experts:
        raise ValueError(
            f"{num_experts} experts do not fit {num_devices} devices x {slots_per_device} slots "
            f"= {num_devices * slots_per_device}"
        )


def widened(placement: Placement, slots_per_device: int) -> Int[np.ndarray, "L G C"]:
    """The slots of a placement, with empty ones up to another number a device.

    Raises:
        ValueError: it has more slots a device.
    """
    spare = slots_per_device - placement.slots_per_device
    if spare < 0:
        raise ValueError(f"the placement has {placement.slots_per_device} slots a device, more than {slots_per_device}")
    return np.pad(placement.slots, ((0, 0), (0, 0), (0, spare)), constant_values=-1)
