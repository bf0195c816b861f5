"""What the ranks of an exchange measurement are told, and what they tell: a folder of plain arrays.

job.json      width, rounds, seed and the variants
*.npz         a routing (L, T, K) or a placement (benchmarks/placement_file.py)
rank-R.npz    what rank R measured, see `Exchanged`
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from benchmarks.placement_file import read_placement_file, write_placement_file
from placement.topology import Placement, Topology
from traces.atomic import write_atomically, write_text_atomically

DISPATCHERS = {
    "per_expert": "PerExpertDispatcher",
    "per_device": "PerDeviceDispatcher",
    "per_node": "PerNodeDispatcher",
}


@dataclass(frozen=True)
class Variant:
    """One way to exchange one routing, or to train one model.

    Attributes:
        routing: name of a routing of the job: its router's, or a calibration's.
        placement: name of a placement of the job.
        dispatcher: per_expert, per_device or per_node.
        computes: whether experts compute on what arrives; a calibration only moves bytes.

    Raises:
        ValueError: an unknown dispatcher.
    """

    routing: str
    placement: str
    dispatcher: str
    computes: bool = True

    def __post_init__(self) -> None:
        if self.dispatcher not in DISPATCHERS:
            raise ValueError(f"dispatcher must be one of {', '.join(DISPATCHERS)}, got {self.dispatcher!r}")


@dataclass(frozen=True, eq=False)
class Job:
    """An exchange measurement: all variants, in a new order each round.

    Attributes:
        topology: nodes and devices, one rank a device.
        variants: by name.
        routings: by name: experts of every choice (L, T, K), -1 for none.
        placements: by name.
        width: values of a row, float32.
        hidden: width inside an expert.
        rounds: measured ones; one more warms up.
        seed: of the order within a round and of rows and weights.
    """

    topology: Topology
    variants: Mapping[str, Variant]
    routings: Mapping[str, Integer[np.ndarray, "L T K"]]
    placements: Mapping[str, Placement]
    width: int
    hidden: int
    rounds: int
    seed: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 4 * self.width

    def starts(self, routing: str) -> Int[np.ndarray, " T"]:
        """The device on which each token of a routing starts: runs of equal length.

        Raises:
            ValueError: the tokens cannot be dealt evenly.
        """
        num_tokens, num_devices = self.routings[routing].shape[1], self.topology.num_devices
        if num_tokens % num_devices:
            raise ValueError(f"{num_tokens} tokens cannot be dealt evenly to {num_devices} devices")
        return np.repeat(np.arange(num_devices), num_tokens // num_devices)


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What all ranks measured of one variant.

    Attributes:
        dispatch: (R, L) seconds of each round and layer, of the slowest rank.
        combine: (R, L) the same of the way back.
        compute: (C, L) seconds of the experts in C of the rounds, of the busiest rank: its processor's or its device's.
        rows: (L, G, G) rows that dispatch sent, by source and destination.
        metadata: (L, G, G) bytes sent beside them.
        wire: (R, N) bytes that each node's interface sent during a round; of grounds without counters 0.
    """

    dispatch: Float[np.ndarray, "R L"]
    combine: Float[np.ndarray, "R L"]
    compute: Float[np.ndarray, "C L"]
    rows: Int[np.ndarray, "L G G"]
    metadata: Int[np.ndarray, "L G G"]
    wire: Int[np.ndarray, "R N"]


def write_job(folder: Path, job: Job) -> None:
    """Write what `read_job` reads."""
    for name, indices in job.routings.items():
        write_atomically(folder / f"routing-{name}.npz", lambda file, array=indices: np.savez(file, array))
    numbers = {key: getattr(job, key) for key in ("width", "hidden", "rounds", "seed")}
    write_told(folder, job.topology, job.variants, job.placements, routings=list(job.routings), **numbers)


def read_job(folder: Path) -> Job:
    """Read what `write_job` wrote."""
    told = read_told(folder)
    told["routings"] = {name: _array(folder / f"routing-{name}.npz") for name in told["routings"]}
    return Job(**told)


def write_told(
    folder: Path,
    topology: Topology,
    variants: Mapping[str, Variant],
    placements: Mapping[str, Placement],
    **rest: Any,
) -> None:
    """Write what `read_told` reads: what every job has, and the rest of this one as plain data."""
    for name, placement in placements.items():
        write_placement_file(folder / f"placement-{name}.npz", placement)
    told = {
        "topology": asdict(topology),
        "variants": {name: asdict(variant) for name, variant in variants.items()},
        "placements": list(placements),
        **rest,
    }
    write_text_atomically(folder / "job.json", json.dumps(told, indent=1))


def read_told(folder: Path) -> dict[str, Any]:
    """What `write_told` wrote, by the names of its arguments."""
    told = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return told | {
        "topology": Topology(**told["topology"]),
        "variants": {name: Variant(**variant) for name, variant in told["variants"].items()},
        "placements": {name: read_placement_file(folder / f"placement-{name}.npz") for name in told["placements"]},
    }


def read_exchanged(folder: Path, job: Job) -> dict[str, Exchanged]:
    """What the ranks wrote, by variant."""
    ranks = []
    for rank in range(job.topology.num_devices):
        with np.load(folder / f"rank-{rank}.npz", allow_pickle=False) as archive:
            ranks.append(dict(archive))
    size = job.topology.devices_per_node
    return {
        name: Exchanged(
            dispatch=np.max([rank[f"{name}/dispatch"] for rank in ranks], axis=0),
            combine=np.max([rank[f"{name}/combine"] for rank in ranks], axis=0),
            compute=np.max([rank[f"{name}/compute"] for rank in ranks], axis=0),
            rows=np.stack([rank[f"{name}/rows"] for rank in ranks], axis=1),
            metadata=np.stack([rank[f"{name}/metadata"] for rank in ranks], axis=1),
            wire=np.stack([rank[f"{name}/wire"] for rank in ranks[::size]], axis=1),
        )
        for name in job.variants
    }


def _array(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive["arr_0"]
