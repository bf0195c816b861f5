"""What a router's choices move between devices under a placement, and what that costs in quality and balance.

python -m benchmarks.route_volume trace.setting=nano16 trace.seed=0 router=variant/c2r_t8 placement=colocated

Experts are placed by how training text was routed, everything is counted on held-out text. A router that is told where
experts live was trained for the very placement that it is scored on; all others are trained once and scored on any.
"""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.arms import (
    PLAIN,
    placed,
    read_arm_routing,
    read_quality,
    refuse_overrides,
    short_name,
    trained_arms,
    with_arms,
)
from benchmarks.cell import Measurement, plain_choices, run_cell, user_errors
from benchmarks.rows import Rows
from placement.balance import device_load, max_over_mean
from placement.contiguous import contiguous
from placement.topology import Placement, Topology
from placement.volume import (
    ACCOUNTINGS,
    Accounting,
    CommVolume,
    dispatch_volume,
    distinct_devices,
    per_device,
    per_expert,
    remote_copies,
)
from traces.collaboration import collaboration_degree
from traces.routing import RoutingTrace

QUALITY = ("held_out/all", "bits_per_byte/all", "causal")


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Count the volume of an arm's held-out routing; credit what it saves to its causes."""
    choices = plain_choices(HydraConfig.get().runtime.choices)
    topology: Topology = instantiate(config.topology)
    arms = trained_arms(config, choices)
    routings = {name: read_arm_routing(arm.folder, "held_out", topology.num_devices) for name, arm in arms.items()}
    placements = {name: placed(config, arm, topology) for name, arm in arms.items()}
    router = choices["router"]
    rows = Rows(config, method=f"{short_name(router)}/{choices['placement']}", ground="trace")
    row_bytes = int(arms[router].config.model.dim) * config.bytes_per_value
    add_volume(rows, routings[router], placements[router], topology, row_bytes)
    add_balance(rows, routings[router], placements[router])
    add_quality(rows, arms[router].folder, arms[PLAIN].folder)
    add_credit(rows, routings, placements, router, topology)
    return Measurement(rows.records, data_fingerprint=routings[router].source.data_fingerprint)


def add_volume(rows: Rows, routing: RoutingTrace, placement: Placement, topology: Topology, row_bytes: int) -> None:
    """Copies and bytes a token in each accounting: mean, and the busiest device's and node's."""
    rows.by_layer("distinct_devices", distinct_devices(routing, placement).mean(0))
    for accounting in ACCOUNTINGS:
        name = accounting.__name__
        for metric, value in volume(routing, placement, topology, row_bytes, accounting).items():
            rows.add(f"{metric}/{name}", value)


def volume(
    routing: RoutingTrace, placement: Placement, topology: Topology, row_bytes: int, accounting: Accounting
) -> dict[str, float]:
    """Bytes a token and layer of dispatch and combine, and what the busiest device and node exchange.

    Dispatch and combine are exchanged one after the other, and each waits for the device (node) that sends or receives
    most in it: the busiest figures are that of dispatch plus that of combine, over the tokens that one device (node)
    holds. They are taken batch by batch and averaged, as every batch waits for its own; "overall" is of all batches as
    if they were one. Egress and ingress are those of dispatch; combine has them the other way round.
    """
    sent = dispatch_volume(routing, placement, topology, row_bytes, accounting)
    returned = sent.reverse
    num_tokens = len(routing.source_device)
    device_tokens, node_tokens = num_tokens / topology.num_devices, num_tokens / topology.nodes
    num_batches = len(routing.step)
    found = {
        "copies": (sent.intra_node + sent.inter_node) / num_tokens / row_bytes,
        "bytes": ((sent + returned).intra_node + (sent + returned).inter_node) / num_tokens,
        "busiest_device_bytes": (busiest_device(sent) + busiest_device(returned)) / device_tokens,
        "busiest_device_egress": sent.busiest_device_egress / device_tokens,
        "busiest_device_ingress": sent.busiest_device_ingress / device_tokens,
        "busiest_device_bytes_overall": (busiest_device(sent.sum(0)) + busiest_device(returned.sum(0)))
        / device_tokens
        / num_batches,
    }
    if topology.nodes > 1:
        found["inter_node_bytes"] = (sent + returned).inter_node / num_tokens
        found["busiest_node_bytes"] = (busiest_node(sent) + busiest_node(returned)) / node_tokens
    return {name: float(values.mean()) for name, values in found.items()}


def busiest_device(sent: CommVolume) -> np.ndarray:
    """Bytes that the busiest device sends or receives in one exchange, whichever is more."""
    return np.maximum(sent.busiest_device_egress, sent.busiest_device_ingress)


def busiest_node(sent: CommVolume) -> np.ndarray:
    """The same of nodes, between nodes."""
    return np.maximum(sent.busiest_node_egress, sent.busiest_node_ingress)


def add_balance(rows: Rows, routing: RoutingTrace, placement: Placement) -> None:
    """Load of the busiest device and expert over the mean: of all held-out text, and of a batch on average."""
    loads_SLE = routing.loads()
    devices_SLG = device_load(loads_SLE, placement)
    rows.by_layer("device_max_over_mean", max_over_mean(devices_SLG.sum(0)))
    rows.by_layer("device_max_over_mean_per_batch", max_over_mean(devices_SLG).mean(0))
    rows.by_layer("expert_max_over_mean", max_over_mean(loads_SLE.sum(0)))
    rows.by_layer("experts_per_token", (routing.expert_indices >= 0).sum(-1).mean((0, 2)))
    rows.by_layer("collaboration_degree", np.nanmean(collaboration_degree(routing.collaboration()), axis=1))


def add_quality(rows: Rows, folder: Path, plain: Path) -> None:
    """The arm's held-out loss, and its difference to the plain arm's on the same text."""
    mine, others = ({row.metric: row.value for row in read_quality(one)} for one in (folder, plain))
    is_causal = bool(mine["causal"])
    for metric in QUALITY:
        # losses of a method that sees later tokens are no measure of quality: they get a name of their own
        rows.add(metric if is_causal or metric == "causal" else f"{metric}/seeing_later_tokens", mine[metric])
    if is_causal:
        rows.add("held_out_over_plain", mine["held_out/all"] - others["held_out/all"])
        rows.add("bits_per_byte_over_plain", mine["bits_per_byte/all"] - others["bits_per_byte/all"])


def add_credit(
    rows: Rows,
    routings: dict[str, RoutingTrace],
    placements: dict[str, Placement],
    router: str,
    topology: Topology,
) -> None:
    """Which cause saves which share of the plain router's copies with contiguous experts and one copy an expert.

    Step by step, each on top of the ones before: one copy a device (deduplication), the plain router's own placement
    (placement), the router on its placement (constraint). Shares add up to the whole saving.
    """
    plain = routings[PLAIN]
    fixed = contiguous(plain.loads()[0], topology, slots_per_device=placements[PLAIN].slots_per_device)
    ladder = {
        "none": remote_copies(plain, fixed, topology, per_expert).mean(),
        "deduplication": remote_copies(plain, fixed, topology, per_device).mean(),
        "placement": remote_copies(plain, placements[PLAIN], topology, per_device).mean(),
        "constraint": remote_copies(routings[router], placements[router], topology, per_device).mean(),
    }
    copies = list(ladder.values())
    for cause, before, after in zip(list(ladder)[1:], copies[:-1], copies[1:], strict=True):
        rows.add(f"saving/{cause}", float((before - after) / copies[0]))
    rows.add("saving/all", float((copies[0] - copies[-1]) / copies[0]))


@hydra.main(config_path="../conf", config_name="route_volume", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        choices = plain_choices(HydraConfig.get().runtime.choices)
        refuse_overrides(config, choices)
        labels = [config.setting, f"seed{config.seed}", short_name(choices["router"]), choices["placement"]]
        run_cell(with_arms(config, choices), labels, measure)


if __name__ == "__main__":
    main()
