"""What measurements of arms on a ground share: which variants there are, how ranks are run, how a cell is named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from benchmarks.arms import Arm, placed, short_name, trained_arms, with_arms
from benchmarks.cell import Measurement, compose, plain_choices, run_cell, user_errors
from benchmarks.cluster.ground import Ground
from benchmarks.cluster.ranks import run_ranks
from benchmarks.exchange_job import Variant
from placement.topology import Placement, Topology


def read_variants(
    config: DictConfig, topology: Topology
) -> tuple[dict[str, Arm], dict[str, Placement], dict[str, Variant]]:
    """The arms of a cell by router, their placements by "ROUTER.PLACEMENT", "ROUTER/PLACEMENT/DISPATCHER" variants.

    Raises:
        ValueError: an arm has not been trained, or its tokens cannot be dealt evenly to the devices.
    """
    choices = plain_choices(HydraConfig.get().runtime.choices)
    arms = {short_name(router): arm for router, arm in trained_arms(config, choices).items()}
    placements, variants = {}, {}
    for one in config.variants:
        router, where = short_name(one.router), f"{short_name(one.router)}.{one.placement}"
        named = compose(config.entry, [f"placement={one.placement}", f"topology={choices['topology']}"])
        placements[where] = placed(named, arms[router], topology)
        for dispatcher in one.dispatchers:
            variants[f"{router}/{one.placement}/{dispatcher}"] = Variant(router, where, dispatcher)
    return arms, placements, variants


def run_job(program: str, told: Path, ground: Ground, timeout: float) -> None:
    """Let a ground's ranks run python -m benchmarks.PROGRAM on the job in the folder `told`; logs lie beside it.

    Raises:
        ValueError: the ground dropped packets, so seconds mean nothing.
        RankFailed: a rank failed.
    """
    before = ground.counters()
    command = [sys.executable, "-m", f"benchmarks.{program}", str(told.resolve()), ground.backend]
    run_ranks(command, ground, told.parent / "log", timeout=timeout)
    ground.refuse_if_dropped(before, ground.counters())


def measure_cell(config: DictConfig, measure: Callable[[DictConfig, Path, Any], Measurement]) -> None:
    """Measure the cell of a setting, a seed, a ground and a topology, unless that is done."""
    with user_errors():
        choices = plain_choices(HydraConfig.get().runtime.choices)
        labels = [config.setting, f"seed{config.seed}", choices["ground"], choices["topology"]]
        run_cell(with_arms(config, choices), labels, measure)
