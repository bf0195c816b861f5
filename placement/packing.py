"""How many replicas each expert gets, and slots that hold them, one layer at a time.

The next replica goes to the expert with most load per replica (the rule that EPLB's public description gives:
DeepSeek-AI, 2025, github.com/deepseek-ai/EPLB). No expert gets more replicas than there are devices, and none two on
one device, which EPLB itself allows.
"""

import heapq

import numpy as np
from jaxtyping import Int, Real

from placement.topology import Topology


def count_replicas(
    load: Real[np.ndarray, " E"], num_slots: int, num_devices: int, offset: float = 0.0
) -> Int[np.ndarray, " E"]:
    """Fill the slots: one each, then again and again one more for the expert with most load per replica.

    Of equal loads the expert with fewer replicas comes first, then the lower number. Slots stay empty where every
    expert is on every device.

    Args:
        offset: above -1, added to the replicas that a load is divided by. 0 leaves the heaviest replica as light as can
            be; below 0 more experts get a second replica, above 0 the busiest get more.
    """
    replicas_E = np.ones(len(load), np.int64)
    queue = [(-float(amount) / (1 + offset), 1, expert) for expert, amount in enumerate(load) if num_devices > 1]
    heapq.heapify(queue)
    for _ in range(min(num_slots, len(load) * num_devices) - len(load)):
        _, replicas, expert = heapq.heappop(queue)
        replicas_E[expert] = replicas + 1
        if replicas + 1 < num_devices:
            heapq.heappush(queue, (-float(load[expert]) / (replicas + 1 + offset), replicas + 1, expert))
    return replicas_E


def fill(
    slots: Int[np.ndarray, "G C"], replicas: Int[np.ndarray, " E"], load: Real[np.ndarray, " E"], topology: Topology
) -> Int[np.ndarray, "G C"]:
    """Put missing replicas into empty slots: the heaviest first, each on the least loaded device without it (LPT).

    Args:
        slots: expert of each slot, -1 for an empty one; of no expert more than its replicas.
        replicas: that each expert shall have in the end, at most one a device.
        load: of each expert, split evenly over its replicas.
    """
    slots_GC, weight_E = slots.copy(), load / replicas
    missing_E = replicas - np.bincount(slots_GC[slots_GC >= 0], minlength=len(load))
    load_G, free_G = np.append(weight_E, 0.0)[slots_GC].sum(1), (slots_GC < 0).sum(1)
    stranded = []
    for expert in np.argsort(-weight_E, kind="stable"):
        open_G = (free_G > 0) & ~(slots_GC == expert).any(1)
        num_placed = min(int(missing_E[expert]), int(open_G.sum()))
        devices = np.argsort(np.where(open_G, load_G, np.inf), kind="stable")[:num_placed]
        slots_GC[devices, (slots_GC[devices] < 0).argmax(1)] = expert
        free_G[devices] -= 1
        load_G[devices] += weight_E[expert]
        stranded += [expert] * int(missing_E[expert] - num_placed)
    # a replica that only devices with its expert have room for waits there, for the repair
    slots_GC[tuple(np.argwhere(slots_GC < 0)[: len(stranded)].T)] = stranded
    return spread_doubles(slots_GC, load, topology)


def spread_doubles(
    slots: Int[np.ndarray, "G C"], load: Real[np.ndarray, " E"], topology: Topology
) -> Int[np.ndarray, "G C"]:
    """Repair slots in which a device holds an expert twice; the same slots where none does.

    A second copy swaps places with a slot of its node, else of any node: by the swap that leaves the lowest maximum of
    the two devices. Where no swap helps, since the expert has more copies than there are devices for, its slot goes to
    the expert with most load per replica of those that the device does not hold; with none left it stays empty.
    """
    slots_GC = slots.copy()
    while (double := _first_double(slots_GC)) is not None:
        device, slot = double
        copies_E = np.bincount(slots_GC[slots_GC >= 0], minlength=len(load))
        weight_E1 = np.append(load / copies_E, 0.0)
        partner = _partner(slots_GC, device, slot, weight_E1, topology.node_of_device)
        if partner is None:
            absent_E = np.where(np.isin(np.arange(len(load)), slots_GC[device]), -1.0, weight_E1[:-1])
            slots_GC[device, slot] = absent_E.argmax() if absent_E.max() >= 0 else -1
        else:
            slots_GC[device, slot], slots_GC[partner] = slots_GC[partner], slots_GC[device, slot]
    return slots_GC


def _first_double(slots_GC: Int[np.ndarray, "G C"]) -> tuple[int, int] | None:
    is_earlier_CC = np.tri(slots_GC.shape[1], k=-1, dtype=bool)
    again_GC = ((slots_GC[:, :, None] == slots_GC[:, None]) & is_earlier_CC).any(-1) & (slots_GC >= 0)
    found = np.argwhere(again_GC)
    return (int(found[0, 0]), int(found[0, 1])) if len(found) else None


def _partner(
    slots_GC: Int[np.ndarray, "G C"], device: int, slot: int, weight_E1: np.ndarray, node_G: np.ndarray
) -> tuple[int, int] | None:
    """The slot with which a second copy swaps places, if there is one."""
    expert, load_G = slots_GC[device, slot], weight_E1[slots_GC].sum(1)
    has_expert_G1 = (slots_GC == expert).any(1, keepdims=True)
    allowed_GC = ~has_expert_G1 & ~np.isin(slots_GC, slots_GC[device][slots_GC[device] >= 0])
    if not allowed_GC.any():
        return None
    near_GC = allowed_GC & (node_G == node_G[device])[:, None]
    moved_GC = weight_E1[expert] - weight_E1[slots_GC]
    higher_GC = np.maximum(load_G[device] - moved_GC, load_G[:, None] + moved_GC)
    higher_GC[~(near_GC if near_GC.any() else allowed_GC)] = np.inf
    other, its_slot = divmod(int(higher_GC.argmin()), slots_GC.shape[1])
    return other, its_slot
