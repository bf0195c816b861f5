"""Mt-KaHyPar as a baseline for co-location: the hypergraph of top-K sets, partitioned into blocks of limited size.

Mt-KaHyPar (Gottesbüren et al., 2024, ACM Trans. Algorithms 20, doi:10.1145/3626527) minimises connectivity, the number
of blocks that a hyperedge touches less one: exactly the distinct devices of a token, for any K. It needs mtkahypar.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from placement.partition import plan_by_blocks, require
from placement.topology import Placement, Topology
from traces.routing import ExpertSets


def mt_kahypar(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    seed: int = 0,
) -> Placement:
    """Partition each layer's sets into one block a device, on one thread and the same every time.

    Args:
        load: for its shape; blocks are limited to their slots, whatever the load.
        current: devices are named so that the fewest experts leave it.

    Raises:
        ImportError: mtkahypar is not installed.
        ValueError: what `plan_by_blocks` refuses.
    """
    mtkahypar = require("mtkahypar", "mt_kahypar")
    blocks_of = partial(_partition, mtkahypar, limits=[slots_per_device] * topology.num_devices, seed=seed)
    return plan_by_blocks(blocks_of, load, topology, slots_per_device, routing, current, seed)


def _partition(
    mtkahypar: Any, sets: ExpertSets, num_experts: int, limits: list[int], seed: int
) -> Int[np.ndarray, " E"]:
    members = [sorted({int(expert) for expert in experts if expert >= 0}) for experts in sets.experts]
    # one expert alone is on one device anyway
    edges = [(each, int(count)) for each, count in zip(members, sets.count, strict=True) if len(each) > 1]
    mtkahypar.set_seed(seed)
    partitioner = mtkahypar.initialize(1, print_warnings=False)
    context = partitioner.context_from_preset(mtkahypar.PresetType.DETERMINISTIC_QUALITY)
    # the imbalance has no meaning where each block has its own limit
    context.set_partitioning_parameters(len(limits), 0.0, mtkahypar.Objective.KM1)
    context.set_individual_target_block_weights(limits)
    context.logging = False
    hypergraph = partitioner.create_hypergraph(
        context, num_experts, len(edges), [each for each, _ in edges], [1] * num_experts, [count for _, count in edges]
    )
    found = hypergraph.partition(context)
    return np.array([found.block_id(expert) for expert in range(num_experts)])
