"""What the ranks of a measurement of whole steps are told, and what they tell.

job.json            variants, blocks, steps, seed, and the trained run of each model
placement-*.npz     where its experts live (benchmarks/placement_file.py)
measured.npz        seconds a step of each rank, block and part (G, B, parts) by variant
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.exchange_job import Variant, read_told, write_told
from placement.topology import Placement, Topology


@dataclass(frozen=True, eq=False)
class StepJob:
    """Whole training steps of all variants, in turns: each round in a new order, a block of steps each.

    Attributes:
        topology: nodes and devices, one rank a device.
        runs: by placement, each of which has a model of its own: the folder of the trained run with its weights.
        placements: by name, in the same order.
        variants: by name.
        blocks: measured ones of each variant; one more warms up.
        steps: of a block.
        seed: of the order within a round.
        outputs: where the text's tokens are cached.

    Raises:
        ValueError: fewer than one block or step.
    """

    topology: Topology
    runs: Mapping[str, str]
    placements: Mapping[str, Placement]
    variants: Mapping[str, Variant]
    blocks: int
    steps: int
    seed: int
    outputs: str

    def __post_init__(self) -> None:
        if min(self.blocks, self.steps) < 1:
            raise ValueError(f"need at least one block of one step, got {self.blocks} blocks of {self.steps} steps")


def write_job(folder: Path, job: StepJob) -> None:
    """Write what `read_job` reads."""
    rest = {key: getattr(job, key) for key in ("runs", "blocks", "steps", "seed", "outputs")}
    write_told(folder, job.topology, job.variants, job.placements, **rest)


def read_job(folder: Path) -> StepJob:
    """Read what `write_job` wrote."""
    return StepJob(**read_told(folder))


def read_measured(folder: Path) -> dict[str, Float[np.ndarray, "G B parts"]]:
    """Seconds a step, by variant, of each rank, block and part, in the order of `models.callbacks.step_timer.PARTS`."""
    with np.load(folder / "measured.npz", allow_pickle=False) as archive:
        return dict(archive)
