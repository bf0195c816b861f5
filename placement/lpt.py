"""LPT, longest processing time first: the heaviest expert to the least loaded device (Graham, 1969,
SIAM J. Appl. Math. 17, doi:10.1137/0117039), here with a limit of C experts a device.

Without the limit the busiest device has at most 4/3 - 1/(3G) of the least possible load.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Real

from placement.balance import mean_load
from placement.movement import relabel
from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets


def lpt(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
) -> Placement:
    """Balance each layer on its own; of several loads (J, L, E), their mean.

    Ties go to the lower expert and device number, so that equal loads give equal plans on every machine.

    Args:
        current: devices are named so that the fewest experts leave it.

    Raises:
        ValueError: a load negative or not finite, more devices than experts, or fewer slots than experts.
    """
    load_LE = mean_load(load)
    check_fits(load_LE.shape[-1], topology.num_devices, slots_per_device)
    plan = Placement(np.stack([place(row, topology.num_devices, slots_per_device) for row in load_LE]))
    return plan if current is None else relabel(plan, current, topology)


def place(load_E: Real[np.ndarray, " E"], num_devices: int, slots_per_device: int) -> Int[np.ndarray, "G C"]:
    """LPT's slots of one layer, -1 for an empty one."""
    slots_GC = np.full((num_devices, slots_per_device), -1)
    held = [0] * num_devices
    open_devices = [(0.0, device) for device in range(num_devices)]
    for expert in np.argsort(-load_E, kind="stable"):
        device_load, device = heapq.heappop(open_devices)
        slots_GC[device, held[device]] = expert
        held[device] += 1
        # a full device is not pushed back, so it is never the least loaded one again
        if held[device] < slots_per_device:
            heapq.heappush(open_devices, (device_load + float(load_E[expert]), device))
    return slots_GC
