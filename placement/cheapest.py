"""The candidate that is predicted to be fastest: other planners propose, the cost model decides layer by layer (ours).

Fewer copies are not yet less time: co-location saves rows and may gather those that are left on one hot node. So each
layer's candidates are compared by predicted seconds of dispatch, compute and combine.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Real

from placement.balance import device_load
from placement.cost import CostModel
from placement.topology import Placement, Topology
from placement.volume import Accounting, CommVolume, nearest_replica, per_device
from traces.routing import ExpertSets


def cheapest(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    planners: Sequence[Callable[..., Placement]],
    stages: Sequence[Accounting] = (per_device,),
    cost: CostModel | None = None,
    row_bytes: int = 1,
    seconds_per_token: float = 0.0,
) -> Placement:
    """Keep for each layer the planner's placement with the least `layer_seconds`, of equals the first.

    Args:
        planners: what makes the candidates; each gets all that a planner gets.
        stages: see `layer_seconds`, as are the arguments that follow.
        cost: fitted to measured exchanges; by default that of the topology's data sheet.

    Raises:
        ValueError: no routing or no planner; or what `layer_seconds` or a planner refuses.
    """
    if routing is None or not planners:
        raise ValueError(
            "cheapest needs routing (RoutingTrace.sets()) and planners, "
            f"got {'none' if routing is None else 'one'} and {len(planners)}"
        )
    options = {"slots_per_device": slots_per_device, "routing": routing, "current": current}
    plans = [planner(load, topology, **options) for planner in planners]
    load_LE, model = load.reshape(-1, *load.shape[-2:]).mean(0), cost or CostModel.from_topology(topology)
    seconds_PL = [
        layer_seconds(plan, topology, load_LE, routing, model, stages, row_bytes, seconds_per_token) for plan in plans
    ]
    best_L = np.argmin(seconds_PL, axis=0)
    return Placement(np.stack([plans[best].slots[layer] for layer, best in enumerate(best_L)]))


def layer_seconds(
    placement: Placement,
    topology: Topology,
    load: Real[np.ndarray, "L E"],
    routing: Sequence[ExpertSets],
    cost: CostModel,
    stages: Sequence[Accounting] = (per_device,),
    row_bytes: int = 1,
    seconds_per_token: float = 0.0,
) -> Float[np.ndarray, " L"]:
    """Predicted seconds of each layer if all tokens of the routing are exchanged at once.

    Tokens start evenly on all devices. Seconds are those of dispatch in its stages, of compute on the busiest device
    and of combine, which is dispatch backwards. With `seconds_per_token` at 0 only communication counts, and which of
    two placements is faster does not depend on `row_bytes`.

    Args:
        load: tokens of each expert or proportional to them; scaled to the routing's choices.
        stages: what dispatch sends, stage after stage: one accounting, or `PER_NODE_STAGES`.
        row_bytes: bytes of one token's row, hidden width x bytes of an element.
        seconds_per_token: that one expert takes for one token.

    Raises:
        ValueError: routing of other layers or experts than the placement; row_bytes below 1; seconds_per_token
            negative or not finite.
    """
    if row_bytes < 1 or not 0 <= seconds_per_token < np.inf:
        raise ValueError(
            f"row_bytes must be 1 or more and seconds_per_token 0 or more and finite, "
            f"got {row_bytes} and {seconds_per_token}"
        )
    rows = [even_start_rows(placement, topology, routing, accounting) for accounting in stages]
    scale = row_bytes / topology.num_devices
    of_rows = replace(
        cost,
        seconds_per_byte_between_nodes=scale * cost.seconds_per_byte_between_nodes,
        seconds_per_byte_inside_node=scale * cost.seconds_per_byte_inside_node,
    )
    communication_L = of_rows.seconds(*rows, *(stage.reverse for stage in reversed(rows)))
    total_L, busiest_L = load.sum(-1), device_load(load, placement).max(-1)
    share_L = np.divide(busiest_L, total_L, out=np.zeros(len(load)), where=total_L > 0)
    choices_L = np.array([sets.count @ (sets.experts >= 0).sum(1) for sets in routing])
    return communication_L + seconds_per_token * share_L * choices_L


def even_start_rows(
    placement: Placement, topology: Topology, routing: Sequence[ExpertSets], accounting: Accounting
) -> CommVolume:
    """Rows that dispatch sends if all tokens of each set start on every device in turn, batch axes (L,).

    That is G times what it sends on average over tokens that start evenly: whole numbers, and no sampling.

    Raises:
        ValueError: layers or experts of placement and routing differ, or devices of placement and topology.
    """
    _check_agree(placement, topology, routing)
    rows = np.zeros((placement.num_layers, topology.num_devices, topology.num_devices), np.int64)
    for layer, sets in enumerate(routing):
        replicas_GE1 = nearest_replica(placement.holds[layer], topology)
        # rows add over tokens: counts are taken bit by bit, which takes few calls and no token more than once a bit
        for bit in range(int(sets.count.max(initial=0)).bit_length()):
            experts_MK = sets.experts[sets.count >> bit & 1 == 1]
            for source, device_E1 in enumerate(replicas_GE1):
                source_M = np.full(len(experts_MK), source)
                rows[layer] += accounting(source_M, device_E1[experts_MK], topology) << bit
    return CommVolume(rows, topology)


def _check_agree(placement: Placement, topology: Topology, routing: Sequence[ExpertSets]) -> None:
    highest = max((int(sets.experts.max(initial=-1)) for sets in routing), default=-1)
    if len(routing) != placement.num_layers or highest >= placement.num_experts:
        raise ValueError(
            f"the routing has {len(routing)} layers and experts to {highest}, "
            f"the placement {placement.num_layers} layers and experts to {placement.num_experts - 1}"
        )
    if placement.num_devices != topology.num_devices:
        raise ValueError(f"the placement has {placement.num_devices} devices, the topology {topology.num_devices}")
