"""A placement on disk: one array, slots (L, G, C)."""

from pathlib import Path

import numpy as np

from placement.topology import Placement
from traces.atomic import write_atomically


def write_placement_file(path: Path, placement: Placement) -> None:
    """Write what `read_placement_file` reads; folders are made where they are missing."""
    write_atomically(path, lambda file: np.savez_compressed(file, slots=placement.slots))


def read_placement_file(path: Path) -> Placement:
    """Read what `write_placement_file` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return Placement(archive["slots"])
