"""EPLB, DeepSeek's expert parallelism load balancer (DeepSeek-AI, 2025, github.com/deepseek-ai/EPLB), from its README.

Redundant copies of heavy experts fill spare slots: the next copy goes to the expert with most load per copy. Copies are
packed onto GPUs of equally many slots: the heaviest first, each to the least loaded GPU that has room. The global
policy does that over all GPUs. The hierarchical policy, where nodes divide the groups of experts, first packs whole
groups onto nodes, then copies and packs within each node, so that a token's experts of one group share a node.

This is our own implementation of that description, in numpy; shapes and names of `rebalance_experts` are EPLB's.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Real

from placement.balance import mean_load
from placement.movement import relabel
from placement.packing import spread_doubles
from placement.topology import Placement, Topology, check_slots
from traces.routing import ExpertSets


def eplb(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    num_groups: int = 1,
) -> Placement:
    """EPLB's plan of each layer, all slots in use; of several loads (J, L, E), their mean.

    EPLB may put an expert twice on a device, where the second copy takes no load off it. Such copies are moved by
    `placement.packing.spread_doubles`, which changes little else; `rebalance_experts` has the plan as EPLB makes it.
    EPLB does not look at the current plan; given here, it only names the devices.

    Args:
        current: devices are named so that the fewest experts leave it.
        num_groups: groups of experts that routing is limited to; 1 (or any number that nodes do not divide) for the
            global policy.

    Raises:
        ValueError: a load negative or not finite, fewer slots than experts, or groups of unequal size.
    """
    load_LE, num_devices = mean_load(load), topology.num_devices
    check_slots(load_LE.shape[-1], num_devices, slots_per_device)
    expert_LP, _, _ = rebalance_experts(
        load_LE, num_devices * slots_per_device, num_groups, topology.nodes, num_devices
    )
    layers = zip(expert_LP.reshape(len(load_LE), num_devices, slots_per_device), load_LE, strict=True)
    plan = Placement(np.stack([spread_doubles(slots_GC, load_E, topology) for slots_GC, load_E in layers]))
    return plan if current is None else relabel(plan, current, topology)


def rebalance_experts(
    weight: Real[np.ndarray, "L E"], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Int[np.ndarray, "L P"], Int[np.ndarray, "L E X"], Int[np.ndarray, "L E"]]:
    """Which expert each slot of each GPU holds, GPU after GPU; a drop-in for EPLB's function on numpy arrays.

    Args:
        weight: load of each logical expert.
        num_replicas: P, slots of all GPUs together.
        num_groups: groups of experts, of neighbouring numbers; the policy is hierarchical where nodes divide it.

    Returns:
        phy2log: expert of each slot.
        log2phy: slots of each expert, -1 beyond its last one; X is the most copies that an expert has.
        logcnt: copies of each expert.

    Raises:
        ValueError: GPUs do not divide slots, or nodes GPUs, or, under the hierarchical policy, groups experts; or fewer
            slots than experts.
    """
    num_experts = weight.shape[1]
    policy_groups, policy_nodes = (num_groups, num_nodes) if num_groups % num_nodes == 0 else (1, 1)
    for name, total, parts in (
        ("num_replicas over num_gpus", num_replicas, num_gpus),
        ("num_gpus over num_nodes", num_gpus, num_nodes),
        ("experts over num_groups", num_experts, policy_groups),
    ):
        if parts < 1 or total % parts:
            raise ValueError(f"{name} must leave no remainder, got {total} over {parts}")
    if num_replicas < num_experts:
        raise ValueError(f"{num_experts} experts need as many replicas at least, got {num_replicas}")
    phy2log = np.stack([_balance(row, num_replicas, policy_groups, policy_nodes, num_gpus) for row in weight])
    return phy2log, *_inverse(phy2log, num_experts)


def _balance(
    weight_E: np.ndarray, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> Int[np.ndarray, " P"]:
    """Groups to nodes, then each node by itself; with one node the global policy."""
    group_size = len(weight_E) // num_groups
    nodes = _pack(weight_E.reshape(num_groups, group_size).sum(1), num_nodes)
    slots = []
    for groups in nodes:
        experts = (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)
        copies, per_copy = _replicate(weight_E[experts], num_replicas // num_nodes)
        slots.append(experts[copies[_pack(per_copy, num_gpus // num_nodes)]].reshape(-1))
    return np.concatenate(slots)


def _replicate(weight_E: np.ndarray, num_copies: int) -> tuple[Int[np.ndarray, " P"], Real[np.ndarray, " P"]]:
    """The expert of each copy and the load of each copy: one copy each, then the extra ones as they are handed out."""
    expert_P, count_E = list(range(len(weight_E))), np.ones(len(weight_E), np.int64)
    for _ in range(num_copies - len(weight_E)):
        heaviest = int((weight_E / count_E).argmax())
        expert_P.append(heaviest)
        count_E[heaviest] += 1
    return np.array(expert_P), (weight_E / count_E)[expert_P]


def _pack(weight_P: np.ndarray, num_packs: int) -> Int[np.ndarray, "packs items"]:
    """Items of each pack, equally many in all: the heaviest first, each to the lightest pack that has room."""
    size = len(weight_P) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    total = np.zeros(num_packs)
    for item in np.argsort(-weight_P, kind="stable"):
        lightest = int(np.where([len(pack) < size for pack in packs], total, np.inf).argmin())
        packs[lightest].append(int(item))
        total[lightest] += weight_P[item]
    return np.array(packs)


def _inverse(phy2log: Int[np.ndarray, "L P"], num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    logcnt = np.stack([np.bincount(row, minlength=num_experts) for row in phy2log])
    log2phy = np.full((*logcnt.shape, logcnt.max()), -1)
    for layer, expert in np.ndindex(logcnt.shape):
        log2phy[layer, expert, : logcnt[layer, expert]] = np.flatnonzero(phy2log[layer] == expert)
    return log2phy, logcnt
