"""Contiguous placement: the first experts on the first device, and so on; the default of every framework."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real

from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets


def contiguous(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
) -> Placement:
    """Place experts in order of their number, whatever their load; device sizes differ by one at most.

    Raises:
        ValueError: more devices than experts, or fewer slots than experts.
    """
    num_layers, num_experts = load.shape[-2:]
    check_fits(num_experts, topology.num_devices, slots_per_device)
    slots_GC = np.full((topology.num_devices, slots_per_device), -1)
    for device, experts in enumerate(np.array_split(np.arange(num_experts), topology.num_devices)):
        slots_GC[device, : len(experts)] = experts
    return Placement(np.tile(slots_GC, (num_layers, 1, 1)))
