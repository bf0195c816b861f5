"""What planners around a graph or hypergraph partitioner share: what it leaves undone, in one place.

A partitioner keeps block sizes only roughly, and knows no nodes. So experts beyond a device's slots move to devices
with room, those first whose sets lose least; then devices are numbered so that sets straddle few nodes.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

from placement.balance import mean_load
from placement.colocate import as_placement, check_routing, membership, onto_nodes, proportion
from placement.movement import relabel
from placement.swaps import Grouping
from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets


def plan_by_blocks(
    blocks_of: Callable[[ExpertSets, int], Int[np.ndarray, " E"]],
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None,
    current: Placement | None,
    seed: int,
) -> Placement:
    """The plan in which each block is a device.

    Args:
        blocks_of: block of each expert, from a layer's sets and the number of experts.

    Raises:
        ValueError: no routing, or one of other layers or experts; a load negative or not finite; more devices than
            experts, or fewer slots than experts; or current of other layers, experts or devices.
    """
    load_LE = mean_load(load)
    num_experts, num_devices = load_LE.shape[1], topology.num_devices
    check_fits(num_experts, num_devices, slots_per_device)
    device_LE = []
    for sets in check_routing(routing, load_LE):
        contains_ME, weight_M = membership(sets, num_experts), proportion(sets.count)
        # with nothing to keep together there is nothing to cut
        worth_cutting = num_devices > 1 and (contains_ME.sum(1) > 1).any()
        block_E = blocks_of(sets, num_experts) if worth_cutting else np.arange(num_experts) % num_devices
        within = fit(block_E, contains_ME, weight_M, num_devices, slots_per_device)
        on_devices = Grouping(contains_ME, weight_M, np.zeros(num_experts), num_devices, 0.0)
        device_LE.append(onto_nodes(on_devices, within, topology, 4, np.random.default_rng(seed)))
    plan = as_placement(np.stack(device_LE), num_devices, slots_per_device)
    return plan if current is None else relabel(plan, current, topology)


def require(module: str, planner: str) -> Any:
    """An optional package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as missing:
        raise ImportError(f"placement={planner} needs {module}: pip install {module}") from missing


def fit(
    block: Int[np.ndarray, " E"],
    contains: Float[np.ndarray, "M E"],
    weight: Float[np.ndarray, " M"],
    num_blocks: int,
    slots: int,
) -> Int[np.ndarray, " E"]:
    """The blocks after the fewest moves that leave none with more experts than slots.

    Each move is the one that keeps most pairs of experts that sets share together.
    """
    block_E, pairs_EE = block.copy(), (contains * weight[:, None]).T @ contains
    np.fill_diagonal(pairs_EE, 0.0)
    while (size_G := np.bincount(block_E, minlength=num_blocks)).max() > slots:
        with_EG = pairs_EE @ np.eye(num_blocks)[block_E]
        gain_EG = with_EG - with_EG[np.arange(len(block_E)), block_E][:, None]
        allowed_EG = (size_G > slots)[block_E][:, None] & (size_G < slots)
        expert, target = divmod(int(np.where(allowed_EG, gain_EG, -np.inf).argmax()), num_blocks)
        block_E[expert] = target
    return block_E
