"""LPT, then pair swaps to a local optimum: no swap of two experts leaves a lower maximum, or more even devices (ours).

The start is that of `placement.lpt` (Graham, 1969, doi:10.1137/0117039), the swaps are those of `placement.slot_swaps`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real

from placement.balance import device_share, mean_load
from placement.lpt import place
from placement.movement import relabel
from placement.slot_swaps import even_out
from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets


def lpt_swaps(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
) -> Placement:
    """Balance each layer on its own, each expert on one device; of several loads (J, L, E), their mean.

    Spare slots let devices hold unequal numbers of experts. Never less even than LPT.

    Args:
        current: devices are named so that the fewest experts leave it.

    Raises:
        ValueError: a load negative or not finite, more devices than experts, or fewer slots than experts; or current of
            other layers, experts or devices.
    """
    share_LE = device_share(mean_load(load), topology.num_devices)
    check_fits(share_LE.shape[-1], topology.num_devices, slots_per_device)
    starts = [place(share_E, topology.num_devices, slots_per_device) for share_E in share_LE]
    plan = Placement(np.stack([even_out(*layer) for layer in zip(starts, share_LE[:, None], strict=True)]))
    return plan if current is None else relabel(plan, current, topology)
