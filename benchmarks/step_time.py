"""How long whole training steps take on a ground, where their time goes, and what saves it.

python -m benchmarks.step_time trace.setting=nano16 trace.seed=0 ground=emulated_200mbit

All variants train in the same processes, a block of steps at a time, each round in a new order: a slow minute of the
machine falls on all of them. Ranks must not outnumber cores, or the scheduler would be timed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig

from benchmarks.arms import PLAIN, read_arm_routing
from benchmarks.cell import Measurement, is_first_process
from benchmarks.cluster.ground import Ground
from benchmarks.measured_arms import measure_cell, read_variants, run_job
from benchmarks.rows import Rows
from benchmarks.step_job import StepJob, read_measured, write_job
from models.callbacks.step_timer import PARTS, REST
from placement.topology import Topology

EXCHANGES = ("dispatch", "combine")
RESAMPLES = 2000


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Train all variants on the ground; record seconds of a step, its parts, and what they are of the baseline's."""
    topology: Topology = instantiate(config.topology)
    ground: Ground = instantiate(config.ground)(topology.nodes, topology.devices_per_node)
    refuse_crowded(ground)
    job, fingerprint = make_job(config, topology)
    told = folder / "steps"
    with ground:
        write_job(told, job)
        run_job("step_rank", told, ground, 60.0 * config.step.timeout_minutes)
    rows = Rows(config, ground=ground.name)
    # another launcher's other ranks: the first one alone was told what all measured
    if is_first_process():
        add_steps(rows, read_measured(told), config.seed)
        rows.add("load_average", os.getloadavg()[0])
    return Measurement(rows.records, data_fingerprint=fingerprint)


def refuse_crowded(ground: Ground) -> None:
    """Raises ValueError, with both numbers, where CPU ranks outnumber the cores that they may use."""
    if ground.backend == "gloo" and ground.num_ranks > (cores := usable_cores()):
        raise ValueError(
            f"{ground.num_ranks} ranks on {cores} cores: whole steps would time the scheduler; take a topology of at "
            f"most {cores} devices, or exchanges alone by `python -m benchmarks.all_to_all`"
        )


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def make_job(config: DictConfig, topology: Topology) -> tuple[StepJob, str]:
    """All variants of a cell, and the fingerprint of the text."""
    arms, placements, variants = read_variants(config, topology)
    runs = {one.placement: str(arms[one.routing].folder.resolve()) for one in variants.values()}
    step, outputs = config.step, str(Path(config.outputs).resolve())
    job = StepJob(topology, runs, placements, variants, step.blocks, step.steps, config.seed, outputs)
    profile = read_arm_routing(arms[PLAIN].folder, "profile", topology.num_devices)
    return job, profile.source.data_fingerprint


def add_steps(rows: Rows, measured: Mapping[str, Float[np.ndarray, "G B parts"]], seed: int) -> None:
    """Seconds of a step and of its parts, medians over blocks, and their ratio to the first variant, block by block."""
    baseline = step_seconds(next(iter(measured.values())))
    for name, seconds in measured.items():
        columns: dict[str, Any] = {"method": name, "count": len(baseline)}
        whole = step_seconds(seconds)
        for metric, values in {"step_seconds": whole, "step_over_baseline": whole / baseline}.items():
            low, high = interval(values, seed)
            for ending, value in {"": float(np.median(values)), "/low": low, "/high": high}.items():
                rows.add(f"{metric}{ending}", value, **columns)
        add_parts(rows, seconds, **columns)


def add_parts(rows: Rows, seconds: Float[np.ndarray, "G B parts"], **columns: Any) -> None:
    """Seconds of a step's parts, means over ranks and medians over blocks; what remains of the step is the rest."""
    whole, parts = step_seconds(seconds), seconds.mean(0)
    of_part = {part: parts[:, number] for number, part in enumerate(PARTS) if part != REST}
    of_part[REST] = whole - sum(of_part.values())
    for part, values in of_part.items():
        rows.add(f"step_seconds/{part}", float(np.median(values)), **columns)
    share = sum(of_part[part] for part in EXCHANGES) / whole
    rows.add("all_to_all_share", float(np.median(share)), **columns)


def step_seconds(seconds: Float[np.ndarray, "G B parts"]) -> Float[np.ndarray, " B"]:
    """Of a step in each block, on the slowest rank."""
    return seconds.sum(-1).max(0)


def interval(values: Float[np.ndarray, " B"], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


@hydra.main(config_path="../conf", config_name="step_time", version_base="1.3")
def main(config: DictConfig) -> None:
    measure_cell(config, measure)


if __name__ == "__main__":
    main()
