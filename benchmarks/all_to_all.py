"""How long dispatch and combine of recorded routings take on a ground, what saves time, and does the cost model know?

python -m benchmarks.all_to_all trace.setting=nano16 trace.seed=0 ground=emulated_200mbit

All variants are exchanged by the same processes, round by round in a new order. An exchange is dispatch and combine of
one batch in all layers, each begun together and ended by the slowest rank; experts' seconds are those of the busiest
rank's processor, as ranks may outnumber cores. Rows are wider than those of the recorded models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.arms import PLAIN, read_arm_routing
from benchmarks.cell import Measurement
from benchmarks.cluster.ground import Ground
from benchmarks.exchange_cost import calibration, fit_costs, predicted_seconds, smallest_bytes
from benchmarks.exchange_job import Exchanged, Job, read_exchanged, write_job
from benchmarks.exchange_rows import add_costs, add_credit, add_exchange, add_prediction
from benchmarks.measured_arms import measure_cell, read_variants, run_job
from benchmarks.rows import Rows
from placement.topology import Topology


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Exchange all variants on the ground; record seconds, bytes, what saves them and what was predicted."""
    topology: Topology = instantiate(config.topology)
    job, fingerprint = make_job(config, topology)
    with instantiate(config.ground)(topology.nodes, topology.devices_per_node) as ground:
        exchanged = exchange(job, ground, folder, 60.0 * config.exchange.timeout_minutes)
        rows = Rows(config, ground=ground.name)
    add_measured(rows, job, exchanged)
    return Measurement(rows.records, data_fingerprint=fingerprint)


def exchange(job: Job, ground: Ground, folder: Path, timeout: float) -> dict[str, Exchanged]:
    """Start the ranks, wait for them, read what they measured; raises what `run_job` does."""
    told = folder / "exchange"
    write_job(told, job)
    run_job("exchange_rank", told, ground, timeout)
    return read_exchanged(told, job)


def add_measured(rows: Rows, job: Job, exchanged: Mapping[str, Exchanged]) -> None:
    """What every variant took and sent, which cause saves what, and what the cost models say; no calibrations."""
    names = [name for name, variant in job.variants.items() if variant.computes]
    costs = fit_costs(job, exchanged)
    for name in names:
        add_exchange(rows, job, exchanged, name, baseline=names[0])
        add_prediction(rows, name, exchanged[name], predicted_seconds(job, name, costs))
    add_credit(rows, job, exchanged)
    add_costs(rows, costs, smallest_bytes(job))


def make_job(config: DictConfig, topology: Topology) -> tuple[Job, str]:
    """All variants of a cell and a calibration of each dispatcher, and the fingerprint of the text routed."""
    arms, placements, variants = read_variants(config, topology)
    routings = {name: read_arm_routing(arm.folder, "held_out", topology.num_devices) for name, arm in arms.items()}
    synthetic = calibration(topology, config.exchange.batches * len(routings[PLAIN].source_device))
    job = Job(
        topology,
        variants | synthetic.variants,
        {name: stacked(trace.expert_indices, config, topology) for name, trace in routings.items()}
        | synthetic.routings,
        placements | synthetic.placements,
        width=config.exchange.width,
        hidden=config.exchange.hidden,
        rounds=config.exchange.rounds,
        seed=config.seed,
    )
    return job, routings[PLAIN].source.data_fingerprint


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
    measure_cell(config, measure)


if __name__ == "__main__":
    main()
