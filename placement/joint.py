"""Even devices, few devices a token and few experts moved, in one search (ours).

Each wish alone spoils the others: experts that tokens choose together make a hot device, and a plan from scratch moves
nearly everything. So a layer's plan minimises, over plans with each expert on one device,

    communication_weight x C_T + load_weight x (max/mean - 1) + movement_weight x share of the experts that move

where C_T is the mean number of distinct devices that hold a token's experts (Luo et al., 2025, arXiv 2505.13345) and
max/mean is that of the devices' loads. Where the routing tells on which device tokens start, that one is not counted:
experts that one device's text wants can live there. The maximum of many devices gives a search no direction, so pair
swaps first lower the sum of squares in its place, then the cost itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from placement.balance import device_load, device_share, max_over_mean, mean_load
from placement.colocate import as_placement, check_routing, membership, onto_nodes, proportion
from placement.movement import check_current, moved_slots, new_names
from placement.swaps import Grouping
from placement.topology import Placement, Topology, check_fits
from traces.routing import ExpertSets

# times load_weight: price of squares in the first descent. Of 0, 1, 2, 5, 10, 20 and 50 at three load weights on 32 and
# 64 experts, 5 is within 0.3 % of the cheapest everywhere, 0 up to 5.5 % dearer
SQUARES = 5.0
NO_SETS = ExpertSets(np.empty((0, 1), np.int64), np.empty(0, np.int64))


class Weights(NamedTuple):
    """What one device more a token, max/mean higher by 1, and moving every expert cost."""

    communication: float = 1.0
    load: float = 1.0
    movement: float = 0.0


class Point(NamedTuple):
    """A plan and what it comes to, means over layers.

    Attributes:
        weights: for which it was searched.
        placement: the plan.
        communication: C_T, distinct devices a token, without the one it starts on where the routing tells that; 0 if no
            routing was given.
        load: max over mean of the devices' loads.
        movement: share of the experts that move from the current plan; 0 if none was given.
    """

    weights: Weights
    placement: Placement
    communication: float
    load: float
    movement: float


def joint(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    communication_weight: float = 1.0,
    load_weight: float = 1.0,
    movement_weight: float = 0.0,
    starts: int = 4,
    seed: int = 0,
) -> Placement:
    """The cheapest plan found for these weights, layer by layer; of several loads (J, L, E), their mean.

    Spare slots let devices hold unequal numbers of experts. Without a current plan movement is free; where sources are
    not told either, devices are numbered so that tokens reach few nodes too.

    Args:
        routing: may be left out where communication_weight is 0.
        movement_weight: a price per byte is this over E x bytes of an expert.
        starts: searches from different starts, of which the best is kept; one more starts from the current plan.
        seed: of the random starts; a layer's plan does not depend on the other layers.

    Raises:
        ValueError: no routing, or one of other layers, experts or devices; loads or weights negative or not finite,
            starts below 1; more devices than experts, or fewer slots than experts; or current of other layers, experts
            or devices.
    """
    load_LE = mean_load(load)
    weights = Weights(communication_weight, load_weight, movement_weight)
    num_layers, num_experts = load_LE.shape
    check_fits(num_experts, topology.num_devices, slots_per_device)
    if not all(0 <= weight < np.inf for weight in weights) or starts < 1:
        raise ValueError(f"weights must be 0 or more and finite, starts 1 or more, got {tuple(weights)} and {starts}")
    sets = [NO_SETS] * num_layers if not communication_weight else check_routing(routing, load_LE)
    held = [None] * num_layers if current is None else check_current(current, load_LE, topology).holds
    searches = [_Search(*layer, topology, slots_per_device, weights) for layer in zip(sets, load_LE, held, strict=True)]
    device_LE = [search.best_of(starts, np.random.default_rng(seed)) for search in searches]
    return as_placement(np.stack(device_LE), topology.num_devices, slots_per_device)


def pareto_front(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    weights: Sequence[Weights],
    starts: int = 4,
    seed: int = 0,
) -> list[Point]:
    """The points of `joint` for several weights that no other one beats in all three respects, by communication.

    Raises:
        ValueError: what `joint` refuses.
    """
    given = {"slots_per_device": slots_per_device, "routing": routing, "current": current}
    points = []
    for each in weights:
        plan = joint(
            load,
            topology,
            **given,
            communication_weight=each.communication,
            load_weight=each.load,
            movement_weight=each.movement,
            starts=starts,
            seed=seed,
        )
        points.append(measure(plan, mean_load(load), routing, current, each))
    # of points that come to the same the first one stands for all
    distinct = list({point[2:]: point for point in reversed(points)}.values())
    front = [point for point in distinct if not any(_beats(other, point) for other in distinct)]
    return sorted(front, key=lambda point: point[2:])


def measure(
    placement: Placement,
    load: Real[np.ndarray, "L E"],
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    weights: Weights | None = None,
) -> Point:
    """What a plan with each expert on one device comes to.

    Raises:
        ValueError: an expert has replicas; or layers or experts differ.
    """
    communication, num_experts = 0.0, load.shape[-1]
    if routing is not None:
        layers = zip(check_routing(routing, load), placement.device_of_expert, strict=True)
        communication = float(np.mean([_visits(sets, device_E, placement.num_devices) for sets, device_E in layers]))
    largest = float(max_over_mean(device_load(load, placement)).mean())
    moved = 0.0 if current is None else float(moved_slots(current, placement).mean()) / num_experts
    return Point(weights or Weights(), placement, communication, largest, moved)


def _visits(sets: ExpertSets, device_E: Int[np.ndarray, " E"], num_devices: int) -> float:
    """C_T of one layer, without the sources where they are told."""
    contains_ME, nothing_E = membership(sets, len(device_E)), np.zeros(len(device_E))
    free_MG = None if sets.source is None else sets.starts(num_devices)
    return Grouping(contains_ME, proportion(sets.count), nothing_E, num_devices, 0.0, free=free_MG).fixed_cost(device_E)


def _beats(one: Point, other: Point) -> bool:
    """Nowhere worse, and better somewhere."""
    return all(a <= b for a, b in zip(one[2:], other[2:], strict=True)) and one[2:] != other[2:]


class _Search:
    """One layer's search: free of names first, then under the names and prices that the current plan gives."""

    def __init__(
        self,
        sets: ExpertSets,
        load_E: Float[np.ndarray, " E"],
        held_GE: Bool[np.ndarray, "G E"] | None,
        topology: Topology,
        slots_per_device: int,
        weights: Weights,
    ) -> None:
        num_devices, num_experts = topology.num_devices, len(load_E)
        self._topology, self._held_GE = topology, held_GE
        self._smooth = Grouping(
            membership(sets, num_experts),
            weights.communication * proportion(sets.count),
            device_share(load_E, num_devices),
            num_devices,
            SQUARES * weights.load,
            slots=slots_per_device,
        )
        price_EG = None if held_GE is None else weights.movement / num_experts * ~held_GE.T
        free_MG = None if sets.source is None else sets.starts(num_devices)
        self._priced = replace(self._smooth, price=price_EG, free=free_MG)
        self._exact = replace(self._priced, load_weight=weights.load)

    def best_of(self, starts: int, rng: np.random.Generator) -> Int[np.ndarray, " E"]:
        """Device of each expert in the cheapest plan found, of equals the one that starts from the current plan."""
        plans = [self._smooth.descend(start) for start in self._smooth.starts(starts, rng)]
        if self._held_GE is None and self._priced.free is None:
            return onto_nodes(self._smooth, self._cheapest(plans), self._topology, starts, rng)
        return self._cheapest([*self._staying(), *(self._priced.descend(self._named(plan)) for plan in plans)])

    def _staying(self) -> list[Int[np.ndarray, " E"]]:
        """The current plan, if there is one without replicas that fits, and what a search makes of it."""
        if self._held_GE is None:
            return []
        first_holder_E = self._held_GE.argmax(0)
        if np.bincount(first_holder_E).max() > (self._smooth.slots or 0):
            return []
        # also without the first descent, so that no plan costs more than staying put
        return [first_holder_E, self._priced.descend(first_holder_E)]

    def _cheapest(self, plans: list[Int[np.ndarray, " E"]]) -> Int[np.ndarray, " E"]:
        return min((self._exact.polish(plan) for plan in plans), key=self._exact.cost_of_worst)

    def _named(self, device_E: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        """The same plan under the names for which it costs least; without sources most experts stay."""
        held_GE = self._held_GE
        if held_GE is None or self._priced.free is not None:
            return self._priced.renamed(device_E)
        return new_names(device_E == np.arange(len(held_GE))[:, None], held_GE, self._topology)[device_E]
