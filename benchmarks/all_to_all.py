"""How long dispatch and combine of recorded routings take on a ground, what saves time, and does the cost model know?

python -m benchmarks.all_to_all trace.setting=nano16 trace.seed=0 ground=emulated_200mbit

All variants are exchanged by the same processes, round by round in a new order. An exchange is dispatch and combine of
one batch in all layers, each begun together and ended by the slowest rank; experts' seconds are those of the busiest
rank's processor, as ranks may outnumber cores. Rows are wider than those of the recorded models.
"""

import sys
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.arms import (
    PLAIN,
    arm_config,
    arm_folder,
    is_told,
    place,
    read_arm_routing,
    read_placement,
    routers_of,
    short_name,
    with_arms,
)
from benchmarks.cell import Measurement, compose, plain_choices, run_cell, user_errors
from benchmarks.cluster.ground import Ground
from benchmarks.cluster.ranks import run_ranks
from benchmarks.exchange_cost import calibration, fit_costs, predicted_seconds
from benchmarks.exchange_job import Exchanged, Job, Variant, read_exchanged, write_job
from benchmarks.exchange_rows import add_credit, add_exchange, add_prediction
from benchmarks.rows import Rows
from placement.topology import Placement, Topology


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Exchange all variants on the ground; record seconds, bytes, what saves them and what was predicted."""
    topology: Topology = instantiate(config.topology)
    job, fingerprint = make_job(config, topology)
    with instantiate(config.ground)(topology.nodes, topology.devices_per_node) as ground:
        exchanged = exchange(job, ground, folder, 60.0 * config.exchange.timeout_minutes)
        rows = Rows(config, ground=ground.name)
    baseline = next(iter(job.variants))
    for name in measured(job):
        add_exchange(rows, job, exchanged, name, baseline)
    add_credit(rows, job, exchanged)
    costs = fit_costs(job, exchanged)
    for name in measured(job):
        add_prediction(rows, name, exchanged[name], predicted_seconds(job, name, costs))
    return Measurement(rows.records, data_fingerprint=fingerprint)


def measured(job: Job) -> list[str]:
    """The variants that are no calibration."""
    return [name for name, variant in job.variants.items() if variant.computes]


def exchange(job: Job, ground: Ground, folder: Path, timeout: float) -> dict[str, Exchanged]:
    """Start the ranks, wait for them, read what they measured.

    Raises:
        ValueError: the ground dropped packets, so seconds mean nothing.
        RankFailed: a rank failed.
    """
    told = folder / "exchange"
    write_job(told, job)
    before = ground.counters()
    command = [sys.executable, "-m", "benchmarks.exchange_rank", str(told.resolve()), ground.backend]
    run_ranks(command, ground, folder / "log", timeout=timeout)
    ground.refuse_if_dropped(before, ground.counters())
    return read_exchanged(told, job)


def make_job(config: DictConfig, topology: Topology) -> tuple[Job, str]:
    """All variants of a cell and a calibration of each dispatcher, and the fingerprint of the text routed."""
    choices = plain_choices(HydraConfig.get().runtime.choices)
    routings, profiles, folders = {}, {}, {}
    for router in routers_of(config, choices):
        arm = arm_config(config, choices, router, config.seed, config.arm.continuations[0])
        folder = arm_folder(arm, router, choices)
        folders[router] = folder if is_told(arm.router) else None
        routings[router] = read_arm_routing(folder, "held_out", topology.num_devices)
        profiles[router] = read_arm_routing(folder, "profile", topology.num_devices)
    variants, placements = {}, {}
    for one in config.variants:
        router, where = short_name(one.router), f"{short_name(one.router)}.{one.placement}"
        placements[where] = place_variant(config, one.placement, folders[one.router], profiles[one.router])
        for dispatcher in one.dispatchers:
            variants[f"{router}/{one.placement}/{dispatcher}"] = Variant(router, where, dispatcher)
    synthetic = calibration(topology, config.exchange.batches * len(routings[PLAIN].source_device))
    job = Job(
        topology,
        variants | synthetic.variants,
        {short_name(name): stacked(trace.expert_indices, config, topology) for name, trace in routings.items()}
        | synthetic.routings,
        placements | synthetic.placements,
        width=config.exchange.width,
        hidden=config.exchange.hidden,
        rounds=config.exchange.rounds,
        seed=config.seed,
    )
    return job, routings[PLAIN].source.data_fingerprint


def place_variant(config: DictConfig, name: str, told: Path | None, profile: Any) -> Placement:
    """The placement that a router was told, or the named one planned on how the router routes training text."""
    if told is not None:
        return read_placement(told)
    return place(compose(config.entry, [f"placement={name}", f"topology={topology_name()}"]), profile)


def topology_name() -> str:
    return plain_choices(HydraConfig.get().runtime.choices)["topology"]


def stacked(indices_SLTK: np.ndarray, config: DictConfig, topology: Topology) -> np.ndarray:
    """The first recorded batches as one (L, T, K); each device's tokens of all batches stand together.

    Raises:
        ValueError: fewer batches were recorded.
    """
    batches, num_devices = config.exchange.batches, topology.num_devices
    if len(indices_SLTK) < batches:
        raise ValueError(f"exchange.batches = {batches}, the arms recorded {len(indices_SLTK)}")
    num_layers, num_tokens, top_k = indices_SLTK.shape[1:]
    by_device = indices_SLTK[:batches].reshape(batches, num_layers, num_devices, num_tokens // num_devices, top_k)
    return by_device.transpose(1, 2, 0, 3, 4).reshape(num_layers, batches * num_tokens, top_k)


@hydra.main(config_path="../conf", config_name="all_to_all", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        choices = plain_choices(HydraConfig.get().runtime.choices)
        labels = [config.setting, f"seed{config.seed}", choices["ground"], choices["topology"]]
        run_cell(with_arms(config, choices), labels, measure)


if __name__ == "__main__":
    main()
