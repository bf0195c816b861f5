"""METIS as a baseline for co-location: the graph of experts that tokens choose together, cut into equal blocks.

METIS (Karypis and Kumar, 1998, SIAM J. Sci. Comput. 20, doi:10.1137/S1064827595287997) minimises the weight of edges
between blocks. An edge weighs the tokens that chose both experts: exact for the number of devices a token reaches
where tokens choose two, an approximation for more. It needs pymetis.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from placement.colocate import membership
from placement.partition import plan_by_blocks, require
from placement.topology import Placement, Topology
from traces.routing import ExpertSets

# METIS counts in 32 bits: what the heaviest edge is scaled to, so that their sum fits
LARGEST_EDGE = 10_000


def metis(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    seed: int = 0,
) -> Placement:
    """Cut each layer's graph into one block a device, of equally many experts as far as METIS keeps to that.

    Args:
        load: for its shape; METIS balances the number of experts, not their load.
        current: devices are named so that the fewest experts leave it.

    Raises:
        ImportError: pymetis is not installed.
        ValueError: what `plan_by_blocks` refuses.
    """
    blocks_of = partial(_cut, require("pymetis", "metis"), num_blocks=topology.num_devices, seed=seed)
    return plan_by_blocks(blocks_of, load, topology, slots_per_device, routing, current, seed)


def _cut(pymetis: Any, sets: ExpertSets, num_experts: int, num_blocks: int, seed: int) -> Int[np.ndarray, " E"]:
    contains_ME = membership(sets, num_experts)
    tokens_EE = (contains_ME * sets.count[:, None]).T @ contains_ME
    np.fill_diagonal(tokens_EE, 0)
    # no edge may weigh 0
    weight_EE = np.ceil(tokens_EE * (LARGEST_EDGE / tokens_EE.max())).astype(int)
    start_E = np.append(0, np.cumsum((weight_EE > 0).sum(1)))
    _, block_E = pymetis.part_graph(
        num_blocks,
        xadj=start_E,
        adjncy=np.nonzero(weight_EE)[1],
        eweights=weight_EE[weight_EE > 0],
        # 1.001 times the mean size at most
        options=pymetis.Options(seed=seed, ufactor=1),
    )
    return np.array(block_E, np.int64)
