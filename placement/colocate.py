"""Co-location: experts that tokens choose together share a device (Zhang et al., 2025, arXiv 2504.01337).

The paper does not publish its algorithm; the rule is ours. The mean number of distinct devices that a token must reach
(C_T of Luo et al., 2025, arXiv 2505.13345) is minimised over the distinct top-K sets, exactly for any K, where a matrix
of pairs would be exact for K = 2 only. That alone can wreck balance, so a load term can be added.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from placement.balance import mean_load
from placement.movement import relabel
from placement.swaps import Grouping
from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets


def colocate(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    load_weight: float = 0.0,
    starts: int = 16,
    seed: int = 0,
) -> Placement:
    """Group each layer on its own, in device sizes that differ by one at most; then group devices to nodes likewise.

    Minimises C_T + load_weight x mean over devices of (load / mean load - 1)^2; of several loads (J, L, E), their mean.

    Args:
        current: devices are named so that the fewest experts leave it.
        starts: searches from different starts, of which the best is kept.
        seed: of the random starts; a layer's plan does not depend on the other layers.

    Raises:
        ValueError: no routing, or one of other layers or experts; loads negative or not finite; load_weight negative or
            not finite, starts below 1; more devices than experts, or fewer slots than experts.
    """
    load_LE = mean_load(load)
    check_fits(load_LE.shape[-1], topology.num_devices, slots_per_device)
    if not 0 <= load_weight < np.inf or starts < 1:
        raise ValueError(f"load_weight must be 0 or more and finite, starts 1 or more, got {load_weight} and {starts}")
    layers = zip(check_routing(routing, load_LE), load_LE, strict=True)
    device_LE = [
        _group(sets, load_E, topology, load_weight, starts, np.random.default_rng(seed)) for sets, load_E in layers
    ]
    plan = as_placement(np.stack(device_LE), topology.num_devices, slots_per_device)
    return plan if current is None else relabel(plan, current, topology)


def as_placement(device: Int[np.ndarray, "L E"], num_devices: int, slots_per_device: int) -> Placement:
    """The placement of experts that live on one device each; no device has more than its slots."""
    slots_LGC = np.full((len(device), num_devices, slots_per_device), -1)
    for slots_GC, device_E in zip(slots_LGC, device, strict=True):
        for number, slots_C in enumerate(slots_GC):
            held = np.flatnonzero(device_E == number)
            slots_C[: len(held)] = held
    return Placement(slots_LGC)


def check_routing(routing: Sequence[ExpertSets] | None, load_LE: Real[np.ndarray, "L E"]) -> Sequence[ExpertSets]:
    """The routing, of the load's layers and experts.

    Raises:
        ValueError: there is none, or it is of other ones.
    """
    if routing is None:
        raise ValueError("the planner needs routing (RoutingTrace.sets()), got none: sample some, or plan by loads")
    num_layers, num_experts = load_LE.shape
    if len(routing) != num_layers:
        raise ValueError(f"the load has {num_layers} layers, the routing {len(routing)}")
    for layer, sets in enumerate(routing):
        if sets.experts.max(initial=-1) >= num_experts:
            raise ValueError(f"layer {layer}: routing names expert {sets.experts.max()}, the load has {num_experts}")
    return routing


def _group(
    sets: ExpertSets, load_E: np.ndarray, topology: Topology, load_weight: float, starts: int, rng: np.random.Generator
) -> Int[np.ndarray, " E"]:
    """Device of each expert: experts into devices, then those devices into nodes."""
    contains_ME, weight_M, num_devices = membership(sets, len(load_E)), proportion(sets.count), topology.num_devices
    on_devices = Grouping(contains_ME, weight_M, proportion(load_E) * num_devices, num_devices, load_weight)
    return onto_nodes(on_devices, on_devices.best_of(starts, rng), topology, starts, rng)


def onto_nodes(
    on_devices: Grouping, group: Int[np.ndarray, " E"], topology: Topology, starts: int, rng: np.random.Generator
) -> Int[np.ndarray, " E"]:
    """Number groups as devices, so that sets straddle few nodes too; they straddle the same number of devices."""
    num_devices, weight_M = topology.num_devices, on_devices.weight
    on_nodes = Grouping(on_devices.touches(group), weight_M, np.zeros(num_devices), topology.nodes, 0.0)
    # number the devices node by node
    number_of_device = np.argsort(np.argsort(on_nodes.best_of(starts, rng), kind="stable"))
    return number_of_device[group]


def membership(sets: ExpertSets, num_experts: int) -> Float[np.ndarray, "M E"]:
    """1 where a set contains an expert, else 0."""
    # column E collects the absent choices (-1) and is cut off again
    contains = np.zeros((len(sets.experts), num_experts + 1))
    np.put_along_axis(contains, sets.experts.astype(np.int64) % (num_experts + 1), 1.0, axis=1)
    return contains[:, :-1]


def proportion(amount: Real[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """Of the total; 0 where there is none."""
    return amount / (amount.sum() or 1)
