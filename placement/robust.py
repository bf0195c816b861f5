"""The plan whose worst case is best: minimax over several loads, such as forecasts, quantiles or recent steps (ours).

Planning for the mean of several loads can leave a device that is hot under one of them. Here a layer's plan minimises
the largest max/mean of device loads over all J loads, each on its own scale: local search over slot swaps, from plans
for the mean, for each expert's highest share and for each load by itself.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from placement.balance import device_share, mean_load
from placement.lpt import place
from placement.movement import relabel
from placement.packing import count_replicas, fill
from placement.slot_swaps import SlotSwaps, even_out
from placement.topology import Placement, Topology, check_slots
from traces.routing import ExpertSets


def robust(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
) -> Placement:
    """Minimise the worst max/mean over the J loads of each layer; tokens split evenly over replicas.

    Spare slots take replicas of the experts with the highest share per replica under any of the loads. One load (L, E)
    is planned like several that agree.

    Args:
        current: devices are named so that the fewest experts leave it.

    Raises:
        ValueError: a load negative or not finite, or fewer slots than experts; or current of other layers, experts or
            devices.
    """
    num_layers, num_experts = mean_load(load).shape
    check_slots(num_experts, topology.num_devices, slots_per_device)
    share_JLE = device_share(load.reshape(-1, num_layers, num_experts), topology.num_devices)
    layers = [_minimax(share_JE, topology, slots_per_device) for share_JE in share_JLE.swapaxes(0, 1)]
    plan = Placement(np.stack(layers))
    return plan if current is None else relabel(plan, current, topology)


def _minimax(share_JE: Float[np.ndarray, "J E"], topology: Topology, slots_per_device: int) -> Int[np.ndarray, "G C"]:
    num_devices = topology.num_devices
    empty_GC = np.full((num_devices, slots_per_device), -1)
    # one load repeated needs one start
    views = np.unique([share_JE.mean(0), share_JE.max(0), *share_JE], axis=0)
    starts = []
    for view_E in views:
        replicas_E = count_replicas(view_E, empty_GC.size, num_devices)
        starts.append(even_out(fill(empty_GC, replicas_E, view_E, topology), view_E[None]))
    if num_devices <= share_JE.shape[1]:
        # replicas can spoil balance; see placement.replicate_swaps
        starts.append(even_out(place(share_JE.mean(0), num_devices, slots_per_device), share_JE.mean(0)[None]))
    searches = [SlotSwaps(start, share_JE) for start in starts + [even_out(start, share_JE) for start in starts]]
    for search in searches:
        search.descend_worst()
    return min(searches, key=lambda search: search.worst).slots
