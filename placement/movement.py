"""What it takes to get from one placement to the next: experts to send, and names that keep most in place (ours).

Devices of a node are alike, and so are nodes: a plan costs the same whatever its devices are called. Names that leave
most experts where they are come from assignment problems (Kuhn, 1955, doi:10.1002/nav.3800020109, the Hungarian
method): devices within each pair of nodes, then nodes as blocks.
"""

import numpy as np
from jaxtyping import Bool, Int, Real
from scipy.optimize import linear_sum_assignment

from placement.topology import Placement, Topology
from placement.volume import CommVolume, nearest_replica


def relabel(placement: Placement, current: Placement, topology: Topology) -> Placement:
    """The same plan under the device names, layer by layer, for which the fewest experts move.

    Of names for which equally many move, those for which more come from within their new node. Device loads stay the
    same; so does what tokens cross, but for replicas equally near, of which tokens take the lowest (`nearest_replica`).

    Raises:
        ValueError: layers, experts or devices of the two differ, or devices and topology.
    """
    _check_agree(placement, current, topology)
    slots = np.empty_like(placement.slots)
    for layer, (holds_GE, current_GE) in enumerate(zip(placement.holds, current.holds, strict=True)):
        slots[layer, new_names(holds_GE, current_GE, topology)] = placement.slots[layer]
    return Placement(slots)


def new_names(
    holds: Bool[np.ndarray, "G E"], current: Bool[np.ndarray, "G E"], topology: Topology
) -> Int[np.ndarray, " G"]:
    """New name of each device of one layer; see `relabel`.

    Args:
        holds: whether a device shall hold an expert.
        current: whether it holds it now.
    """
    nodes, size = topology.nodes, topology.devices_per_node
    kept_NDND = (holds.astype(np.int64) @ current.T).reshape(nodes, size, nodes, size)
    # [n, m]: replicas of node n whose expert is on node m now, so that no byte need cross
    near_NN = holds.reshape(nodes, size, -1).sum(1) @ current.reshape(nodes, size, -1).any(1).T.astype(np.int64)
    kept_NN, name_NND = np.zeros((nodes, nodes), np.int64), np.zeros((nodes, nodes, size), np.int64)
    for new, old in np.ndindex(nodes, nodes):
        devices, name_NND[new, old] = linear_sum_assignment(kept_NDND[new, :, old], maximize=True)
        kept_NN[new, old] = kept_NDND[new, devices, old, name_NND[new, old]].sum()
    _, old_N = linear_sum_assignment(kept_NN * (near_NN.sum() + 1) + near_NN, maximize=True)
    return (old_N[:, None] * size + name_NND[np.arange(nodes), old_N]).reshape(-1)


def moved_slots(current: Placement, new: Placement) -> Int[np.ndarray, " L"]:
    """Slots that must be filled from another device: experts that a device shall hold and does not hold now.

    Raises:
        ValueError: layers, experts or devices differ.
    """
    _check_same_shape(current, new)
    return (new.holds & ~current.holds).sum((1, 2))


def migration(current: Placement, new: Placement, topology: Topology, bytes_per_expert: int) -> CommVolume:
    """Bytes that devices send one another to get from one placement to the next, batch axis (L,).

    Each newly held expert comes from the nearest device that holds it now: one of the same node, else any; the lowest
    of several. What a device keeps moves no byte, and what it drops neither.

    Args:
        bytes_per_expert: of one expert's weights and of all that moves with them, such as optimiser states: a byte
            costs the same whatever it means.

    Raises:
        ValueError: layers, experts or devices differ; bytes_per_expert negative.
    """
    _check_agree(new, current, topology)
    if bytes_per_expert < 0:
        raise ValueError(f"bytes_per_expert must not be negative, got {bytes_per_expert}")
    num_devices = topology.num_devices
    experts = np.zeros((new.num_layers, num_devices, num_devices), np.int64)
    for layer, (new_GE, current_GE) in enumerate(zip(new.holds, current.holds, strict=True)):
        getting, expert = np.nonzero(new_GE & ~current_GE)
        sending = nearest_replica(current_GE, topology)[getting, expert]
        np.add.at(experts[layer], (sending, getting), 1)
    return CommVolume(experts * bytes_per_expert, topology)


def check_current(current: Placement, load: Real[np.ndarray, "L E"], topology: Topology) -> Placement:
    """The current placement, of the load's layers and experts and the topology's devices.

    Raises:
        ValueError: it is of other ones.
    """
    expected = (len(load), topology.num_devices, load.shape[1])
    found = (current.num_layers, current.num_devices, current.num_experts)
    if found != expected:
        raise ValueError(f"the current placement has (L, G, E) = {found}, load and topology {expected}")
    return current


def _check_agree(new: Placement, current: Placement, topology: Topology) -> None:
    _check_same_shape(current, new)
    if new.num_devices != topology.num_devices:
        raise ValueError(f"the placement has {new.num_devices} devices, the topology {topology.num_devices}")


def _check_same_shape(current: Placement, new: Placement) -> None:
    shapes = [(each.num_layers, each.num_devices, each.num_experts) for each in (current, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the current placement has (L, G, E) = {shapes[0]}, the new one {shapes[1]}")
