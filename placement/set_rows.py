"""Rows that dispatch sends, from counted sets of experts in place of single tokens."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from placement.topology import Placement, Topology
from placement.volume import Accounting, CommVolume, nearest_replica
from traces.routing import ExpertSets


def rows_of_sets(
    placement: Placement, topology: Topology, routing: Sequence[ExpertSets], accounting: Accounting
) -> CommVolume:
    """G times the rows that dispatch sends, batch axes (L,): whole numbers, and no sampling.

    Sets whose sources are not told start on every device in turn: G times the mean over tokens that start evenly.

    Raises:
        ValueError: layers, experts or sources of placement and routing differ, or devices of placement and topology.
    """
    _check_agree(placement, topology, routing)
    num_devices = topology.num_devices
    rows = np.zeros((placement.num_layers, num_devices, num_devices), np.int64)
    for layer, sets in enumerate(routing):
        starts_MG = sets.starts(num_devices)
        replicas_GE1 = nearest_replica(placement.holds[layer], topology)
        # rows add over tokens: counts are taken bit by bit, which takes few calls and no token more than once a bit
        for bit in range(int(sets.count.max(initial=0)).bit_length()):
            has_bit_M = sets.count >> bit & 1 == 1
            for source, device_E1 in enumerate(replicas_GE1):
                experts_mK = sets.experts[has_bit_M & starts_MG[:, source]]
                source_m = np.full(len(experts_mK), source)
                rows[layer] += accounting(source_m, device_E1[experts_mK], topology) << bit
        if sets.source is not None:
            rows[layer] *= num_devices
    return CommVolume(rows, topology)


def busiest_way(volume: CommVolume) -> Int[np.ndarray, "*B"]:
    """The most that one device sends to others or gets from them: an exchange over equal links waits for it."""
    return np.maximum(volume.busiest_device_egress, volume.busiest_device_ingress)


def _check_agree(placement: Placement, topology: Topology, routing: Sequence[ExpertSets]) -> None:
    highest = max((int(sets.experts.max(initial=-1)) for sets in routing), default=-1)
    if len(routing) != placement.num_layers or highest >= placement.num_experts:
        raise ValueError(
            f"the routing has {len(routing)} layers and experts to {highest}, "
            f"the placement {placement.num_layers} layers and experts to {placement.num_experts - 1}"
        )
    if placement.num_devices != topology.num_devices:
        raise ValueError(f"the placement has {placement.num_devices} devices, the topology {topology.num_devices}")
