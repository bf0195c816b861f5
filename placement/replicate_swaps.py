"""Spare slots for the busiest experts, then swaps: replicas as EPLB hands them out, evened out afterwards (ours).

Replicas: DeepSeek-AI, 2025, github.com/deepseek-ai/EPLB (the next one to the expert with most load per replica). What
EPLB does not do: no device holds an expert twice, slots swap until devices are even (`placement.slot_swaps`), other
numbers of replicas are tried where these do not pack, and a plan can stay near the current one.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from placement.balance import device_share, mean_load
from placement.lpt import place
from placement.movement import relabel
from placement.packing import count_replicas, fill
from placement.slot_swaps import SlotSwaps, even_out
from placement.topology import Placement, Topology, check_slots, widened
from traces.routing import ExpertSets

Slots = Int[np.ndarray, "G C"]
# rules by which replicas are tried, see `count_replicas`: where one leaves replicas that do not pack, another one's do
OFFSETS = (0.0, -0.25, -0.5, 1.0)
# max/mean at which no further rule is tried
EVEN_ENOUGH = 1.001


def replicate_swaps(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    movement_weight: float = 0.0,
) -> Placement:
    """Balance each layer on its own with as many replicas as slots allow; of several loads (J, L, E), their mean.

    Minimises max/mean of the devices, tokens split evenly over replicas, plus movement_weight x share of the slots that
    must be filled anew. Candidates are a plan from scratch, under the device names for which least moves, and every
    plan on the way from the current one: its slots, with or without the replicas that the load asks for, swap by swap.
    Without spare slots, or where replicas spoil balance, experts are placed once, as `lpt_swaps` does.

    Args:
        current: what movement is counted from; without it movement is free.
        movement_weight: in units of max/mean, what it may cost to fill all slots anew.

    Raises:
        ValueError: a load negative or not finite, fewer slots than experts, movement_weight negative or not finite; or
            current of other layers, experts or devices, or of more slots a device.
    """
    share_LE = device_share(mean_load(load), topology.num_devices)
    check_slots(share_LE.shape[-1], topology.num_devices, slots_per_device)
    if not 0 <= movement_weight < np.inf:
        raise ValueError(f"movement_weight must be 0 or more and finite, got {movement_weight}")
    plan = np.stack([_from_scratch(share_E, topology, slots_per_device) for share_E in share_LE])
    if current is None:
        return Placement(plan)
    named = relabel(Placement(plan), current, topology)
    layers = zip(named.slots, share_LE, widened(current, slots_per_device), current.holds, strict=True)
    return Placement(np.stack([_cheapest(*layer, topology, movement_weight) for layer in layers]))


def _from_scratch(share_E: Float[np.ndarray, " E"], topology: Topology, slots_per_device: int) -> Slots:
    plans = []
    for plan_GC in _plans(share_E, topology, slots_per_device):
        plans.append(plan_GC)
        if _worst(plan_GC, share_E) <= EVEN_ENOUGH:
            break
    return min(plans, key=lambda plan_GC: _worst(plan_GC, share_E))


def _plans(share_E: np.ndarray, topology: Topology, slots_per_device: int) -> Iterator[Slots]:
    """Plans with replicas handed out by one rule after another, then one without replicas."""
    num_devices = topology.num_devices
    empty_GC = np.full((num_devices, slots_per_device), -1)
    tried = set()
    for offset in OFFSETS:
        replicas_E = count_replicas(share_E, empty_GC.size, num_devices, offset)
        if tuple(replicas_E) not in tried:
            yield even_out(fill(empty_GC, replicas_E, share_E, topology), share_E[None])
        tried.add(tuple(replicas_E))
    # halves of a heavy expert can be harder to pack than the whole: 3 | 2 + 1 is even, and nothing with 1.5 twice is
    if num_devices <= len(share_E):
        yield even_out(place(share_E, num_devices, slots_per_device), share_E[None])


def _cheapest(
    scratch_GC: Slots, share_E: np.ndarray, current_GC: Slots, held_GE: np.ndarray, topology: Topology, weight: float
) -> Slots:
    """The best of the plan from scratch and of those on the way from the current one; of equals what moves less."""

    def cost(slots_GC: Slots) -> tuple[float, int]:
        moved = int((_holds(slots_GC, len(share_E)) & ~held_GE).sum())
        return _worst(slots_GC, share_E) + weight * moved / slots_GC.size, moved

    if not weight:
        return scratch_GC
    replicas_E = count_replicas(share_E, current_GC.size, len(current_GC))
    starts = current_GC, _with_replicas(current_GC, replicas_E, share_E, topology)
    return min(chain([scratch_GC], *(_way(start_GC, share_E) for start_GC in starts)), key=cost)


def _way(slots_GC: Slots, share_E: np.ndarray) -> Iterator[Slots]:
    """The slots before and after every swap of the search that evens them out."""
    swaps = SlotSwaps(slots_GC, share_E[None])
    yield swaps.slots
    for _ in swaps.descend():
        yield swaps.slots


def _with_replicas(slots_GC: Slots, replicas_E: np.ndarray, share_E: np.ndarray, topology: Topology) -> Slots:
    """Other numbers of replicas for few slots: surplus ones leave the busiest devices, missing ones fill the gaps."""
    kept_GC = slots_GC.copy()
    surplus_E = _holds(slots_GC, len(share_E)).sum(0) - replicas_E
    for expert in np.flatnonzero(surplus_E > 0):
        devices, slots = np.nonzero(kept_GC == expert)
        busiest = np.argsort(-_load(kept_GC, share_E)[devices], kind="stable")[: surplus_E[expert]]
        kept_GC[devices[busiest], slots[busiest]] = -1
    return fill(kept_GC, replicas_E, share_E, topology)


def _holds(slots_GC: Slots, num_experts: int) -> Bool[np.ndarray, "G E"]:
    # the last column collects the empty slots (-1) and is cut off again
    holds_GE1 = np.zeros((len(slots_GC), num_experts + 1), bool)
    holds_GE1[np.arange(len(slots_GC))[:, None], slots_GC] = True
    return holds_GE1[:, :-1]


def _load(slots_GC: Slots, share_E: np.ndarray) -> Float[np.ndarray, " G"]:
    holds_GE = _holds(slots_GC, len(share_E))
    return holds_GE @ (share_E / holds_GE.sum(0))


def _worst(slots_GC: Slots, share_E: np.ndarray) -> float:
    return float(_load(slots_GC, share_E).max())
