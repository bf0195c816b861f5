"""Calibrate the cost model of each dispatcher beside the variants, and predict the variants with it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from benchmarks.exchange_job import DISPATCHERS, Exchanged, Job, Variant
from placement.cost import CostModel, fit_cost
from placement.topology import Placement, Topology
from placement.volume import (
    PER_NODE_STAGES,
    Accounting,
    CommVolume,
    dispatch_volume,
    per_device,
    per_expert,
)
from traces.load import TraceSource
from traces.routing import RoutingTrace

STAGES: dict[str, tuple[Accounting, ...]] = {
    "per_expert": (per_expert,),
    "per_device": (per_device,),
    "per_node": PER_NODE_STAGES,
}
# of the tokens; each size is a layer of the calibration's routing. Small ones would time the burst a link lets pass
SHARES = (0.5, 2 / 3, 5 / 6, 1.0)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Variants that move known bytes over one kind of link, with their routings and placements."""

    variants: dict[str, Variant]
    routings: dict[str, Int[np.ndarray, "L T K"]]
    placements: dict[str, Placement]


def calibration(topology: Topology, num_tokens: int) -> Calibration:
    """One expert a device; a share of the tokens, growing from layer to layer, goes to other devices in turn.

    Either to all devices of other nodes or to all others of the own node: every device sends and gets as much, over
    one kind of link.
    """
    size, num_devices, each = topology.devices_per_node, topology.num_devices, num_tokens // topology.num_devices
    device_GT, turn_GT = np.indices((num_devices, each))
    own_GT = device_GT // size * size
    goals = {}
    if topology.nodes > 1:
        goals["between"] = (own_GT + size + turn_GT % (num_devices - size)) % num_devices
    if size > 1:
        goals["inside"] = own_GT + (device_GT + 1 + turn_GT % (size - 1)) % size
    routings = {
        f"calibration-{link}": np.stack(
            [np.where(turn_GT < share * each, goal_GT, -1).reshape(-1, 1) for share in SHARES]
        )
        for link, goal_GT in goals.items()
    }
    one_each = Placement(np.tile(np.arange(num_devices)[None, :, None], (len(SHARES), 1, 1)))
    variants = {
        f"{routing}/{dispatcher}": Variant(routing, "calibration", dispatcher, computes=False)
        for routing in routings
        for dispatcher in DISPATCHERS
    }
    return Calibration(variants, routings, {"calibration": one_each})


def fit_costs(job: Job, exchanged: Mapping[str, Exchanged]) -> dict[str, CostModel]:
    """The cost model of each dispatcher, fitted to its calibration only."""
    costs = {}
    for dispatcher in DISPATCHERS:
        names = [
            name for name, variant in job.variants.items() if variant.dispatcher == dispatcher and not variant.computes
        ]
        stages = [round_trip(job, name) for name in names]
        bytes_PGG = [np.concatenate([stage.bytes for stage in same]) for same in zip(*stages, strict=True)]
        seconds = np.concatenate([seconds_of(exchanged[name]) for name in names])
        costs[dispatcher] = fit_cost([CommVolume(one, job.topology) for one in bytes_PGG], seconds)
    return costs


def smallest_bytes(job: Job) -> float:
    """Bytes that the busiest node, inside a node the busiest device, sends in the smallest exchange that is fitted."""
    sent = [volume(job, name, per_expert) for name, variant in job.variants.items() if not variant.computes]
    return float(min(np.maximum(one.busiest_node_egress, one.busiest_device_egress).min() for one in sent))


def predicted_seconds(job: Job, name: str, costs: Mapping[str, CostModel]) -> Float[np.ndarray, " L"]:
    """What the dispatcher's cost model says of a variant's dispatch and combine, layer by layer."""
    return costs[job.variants[name].dispatcher].seconds(*round_trip(job, name))


def seconds_of(exchanged: Exchanged) -> Float[np.ndarray, " L"]:
    """Measured seconds of dispatch and combine, layer by layer: the median over rounds."""
    return np.median(exchanged.dispatch + exchanged.combine, axis=0)


def round_trip(job: Job, name: str) -> list[CommVolume]:
    """The stages of a variant's dispatch and combine, batch axis (L,)."""
    there = [volume(job, name, accounting) for accounting in STAGES[job.variants[name].dispatcher]]
    return [*there, *(stage.reverse for stage in reversed(there))]


def volume(job: Job, name: str, accounting: Accounting) -> CommVolume:
    """Bytes of rows that a variant's dispatch sends in one accounting, batch axis (L,)."""
    variant = job.variants[name]
    placement, chosen_LTK = job.placements[variant.placement], job.routings[variant.routing]
    source = TraceSource("-", "-", 0, chosen_LTK.shape[1], chosen_LTK.shape[2], "-", "-")
    trace = RoutingTrace(
        np.zeros(1, np.int64), chosen_LTK[None], job.starts(variant.routing), placement.num_experts, source
    )
    return dispatch_volume(trace, placement, job.topology, job.row_bytes, accounting).sum(0)
