"""One result is one flat row; what all rows of a run share is one line beside it.

A finished experiment is a folder:

    EXPERIMENT/records.csv      one `Record` a row
    EXPERIMENT/cells.jsonl      one `Cell` a line: the grid cell's full configuration and where it ran
    EXPERIMENT/curves/CELL.json series for the figures
"""

import csv
import dataclasses
import io
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.atomic import write_text_atomically


@dataclass(frozen=True)
class Record:
    """One measured figure.

    Attributes:
        experiment, scale: which claim, at which size.
        ground: what it was measured on, e.g. "cpu" or "cuda".
        setting: the trained configuration the figure is about, e.g. "nano16".
        seed: seed of the training run.
        method: predictor, planner or router under test; "-" where there is none.
        metric: name of the figure, see docs/metrics.md for units.
        value: the figure.
        horizon: iterations ahead, 0 where it has no meaning.
        state: "transient", "stable" or "all".
        layer: MoE layer number from 0, or "all" for their mean.
        floor: the same metric of a perfect forecast under independent tokens; NaN where it has no meaning.
        floor_empirical: the same with the data's own variance (fixed weights, repeated batches).
        count: how many evaluations the value averages.
        cell: fingerprint of the grid cell, the key into cells.jsonl.
        topology: nodes x devices a node that the figure is for, e.g. "4x2"; "-" where devices have no part in it.
    """

    experiment: str
    scale: str
    ground: str
    setting: str
    seed: int
    method: str
    metric: str
    value: float
    cell: str
    topology: str = "-"
    horizon: int = 0
    state: str = "all"
    layer: str = "all"
    floor: float = float("nan")
    floor_empirical: float = float("nan")
    count: int = 1

    @property
    def where(self) -> str:
        """What only replicates share, setting and topology, e.g. "nano32 on 4x2 devices"."""
        return self.setting if self.topology == "-" else f"{self.setting} on {self.topology} devices"


@dataclass(frozen=True)
class Cell:
    """Where a cell's records come from: its whole configuration, the code, the machine and the time it took.

    `recorded` is the day it was measured, e.g. "2026-01-31", and `expectations` the fingerprint of what was expected of
    its experiment then; empty where nobody noted it.
    """

    cell: str
    experiment: str
    config: dict[str, Any]
    commit: str
    versions: dict[str, str]
    machine: str
    data_fingerprint: str
    seconds: float
    run_id: str
    recorded: str = ""
    expectations: str = ""


def write_records(path: Path, records: list[Record]) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Record)], lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = dataclasses.asdict(record)
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
    write_text_atomically(path, text.getvalue())


def read_records(path: Path) -> list[Record]:
    """Read rows written by `write_records`; ValueError names the file where it is no such table."""
    types = typing.get_type_hints(Record)
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = csv.DictReader(file)
            # a column with a default would otherwise be made up
            if missing := sorted(set(types) - set(rows.fieldnames or [])):
                raise ValueError(f"no column {', '.join(missing)}")
            return [Record(**{key: types[key](text) for key, text in row.items()}) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a table of records ({error})") from None


def read_cell(folder: Path) -> Cell:
    """The cell that a finished cell's folder tells of in its cell.json."""
    return Cell(**json.loads((folder / "cell.json").read_text(encoding="utf-8")))


def write_cells(path: Path, cells: list[Cell]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = (json.dumps(dataclasses.asdict(cell), sort_keys=True) + "\n" for cell in cells)
    write_text_atomically(path, "".join(lines))


def read_cells(path: Path) -> list[Cell]:
    """Read what `write_cells` wrote."""
    try:
        return [Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a list of cells ({error})") from None
