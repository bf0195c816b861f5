"""What the ranks of a measurement of whole steps are told, and what they tell.

job.json        variants, blocks, steps, seed, and the trained run of each model
MODEL.npz       its placement, slots (L, G, C)
measured.npz    seconds a step of each rank, block and part (G, B, parts) by variant
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from placement.topology import Placement, Topology
from traces.atomic import write_atomically, write_text_atomically


@dataclass(frozen=True)
class StepVariant:
    """One way to train.

    Attributes:
        model: name of a model of the job.
        dispatcher: per_expert, per_device or per_node.
    """

    model: str
    dispatcher: str


@dataclass(frozen=True, eq=False)
class StepJob:
    """Whole training steps of all variants, in turns: each round in a new order, a block of steps each.

    Attributes:
        topology: nodes and devices, one rank a device.
        runs: by model: the folder of the trained run whose weights it has.
        placements: by model: where its experts live.
        variants: by name.
        blocks: measured ones of each variant; one more warms up.
        steps: of a block.
        seed: of the order within a round.
        outputs: where the text's tokens are cached.
    """

    topology: Topology
    runs: Mapping[str, str]
    placements: Mapping[str, Placement]
    variants: Mapping[str, StepVariant]
    blocks: int
    steps: int
    seed: int
    outputs: str


def write_job(folder: Path, job: StepJob) -> None:
    """Write what `read_job` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, placement in job.placements.items():
        write_atomically(folder / f"{name}.npz", lambda file, slots=placement.slots: np.savez(file, slots=slots))
    told = {
        "topology": asdict(job.topology),
        "variants": {name: asdict(variant) for name, variant in job.variants.items()},
        **{key: getattr(job, key) for key in ("runs", "blocks", "steps", "seed", "outputs")},
    }
    write_text_atomically(folder / "job.json", json.dumps(told, indent=1))


def read_job(folder: Path) -> StepJob:
    """Read what `write_job` wrote."""
    told = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    topology = Topology(**told.pop("topology"))
    variants = {name: StepVariant(**variant) for name, variant in told.pop("variants").items()}
    placements = {}
    for name in told["runs"]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            placements[name] = Placement(archive["slots"])
    return StepJob(topology, placements=placements, variants=variants, **told)


def read_measured(folder: Path) -> dict[str, Float[np.ndarray, "G B parts"]]:
    """Seconds a step, by variant, of each rank, block and part, in the order of `models.callbacks.step_timer.PARTS`."""
    with np.load(folder / "measured.npz", allow_pickle=False) as archive:
        return dict(archive)
