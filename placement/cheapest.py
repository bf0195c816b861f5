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
from placement.set_rows import rows_of_sets
from placement.topology import Placement, Topology
from placement.volume import Accounting, per_device
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

    Tokens start where the routing tells, or evenly on all devices. Seconds are those of dispatch in its stages, of
    compute on the busiest device and of combine, which is dispatch backwards. With `seconds_per_token` at 0 only
    communication counts, and which of two placements is faster does not depend on `row_bytes`.

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
    rows = [rows_of_sets(placement, topology, routing, accounting) for accounting in stages]
    scale = row_bytes / topology.num_devices
    of_rows = replace(
        cost,
        seconds_per_byte_between_nodes=scale * cost.seconds_per_byte_between_nodes,
        seconds_per_byte_inside_node=scale * cost.seconds_per_byte_inside_node,
    )
    communication_L = of_rows.seconds(*rows, *(stage.reverse for stage in reversed(rows)))
    total_L, busiest_L = load.sum(-1), device_load(load, placement).max(-1)
    share_L = np.divide(busiest_L, total_L, out=np.zeros(len(load)), where=total_L > 0)
    choices_L = np.array([sets.num_choices for sets in routing])
    return communication_L + seconds_per_token * share_L * choices_L
