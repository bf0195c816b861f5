"""Reading a results folder: what was measured, and what its experiments' YAML files claimed beforehand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from benchmarks.expectation import expectations_fingerprint, parse_expectation
from benchmarks.figures import Curve, read_curves
from benchmarks.record import Cell, Record, read_cells, read_records
from benchmarks.verdict import Finding, judge

LAST = 1_000  # place in the report of what has no claims, such as the training runs


@dataclass(frozen=True)
class FailedCell:
    """A cell that could not run, the command that tried, and why."""

    cell: str
    command: str
    reason: str


@dataclass(frozen=True)
class Experiment:
    """One experiment: its question, what was measured and what that says about each claim."""

    name: str
    order: int
    title: str
    question: str
    run: str
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    records: list[Record]
    cells: list[Cell]
    curves: list[Curve]
    failed: list[FailedCell]


def read_results(root: Path, conf: Path) -> list[Experiment]:
    """All experiments under `root`, in the order that their YAML files give; hidden folders are not experiments.

    Args:
        root: holds a folder an experiment.
        conf: holds `experiment/NAME.yaml`.

    Raises:
        ValueError: there is no such folder, or a file in it cannot be read; the message names it.
    """
    experiments = [read_experiment(folder, conf) for folder in experiment_folders(root)]
    return sorted(experiments, key=lambda experiment: (experiment.order, experiment.name))


def experiment_folders(root: Path) -> list[Path]:
    """The folders under `root` that hold records or say why there are none, by name."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such results folder")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in folders if (path / "records.csv").exists() or (path / "failed.jsonl").exists()]


def read_experiment(folder: Path, conf: Path) -> Experiment:
    """One experiment's folder; a file that is absent counts as empty."""
    about = _read_about(conf / "experiment" / f"{folder.name}.yaml")
    records = _read(folder / "records.csv", read_records)
    try:
        findings = tuple(judge(parse_expectation(item), records) for item in about.get("expect") or [])
    except ValueError as error:
        raise ValueError(f"experiment {folder.name}: {error}") from None
    cells = _read(folder / "cells.jsonl", read_cells)
    return Experiment(
        name=folder.name,
        order=int(about.get("order", LAST)),
        title=str(about.get("title") or folder.name),
        question=str(about.get("question") or ""),
        run=str(about.get("run") or ""),
        notes=(*(str(note) for note in about.get("notes") or []), *_later_expectations(about, cells)),
        findings=findings,
        records=records,
        cells=cells,
        curves=read_curves(folder / "curves"),
        failed=_read(folder / "failed.jsonl", _read_failed),
    )


def _later_expectations(about: Mapping[str, Any], cells: list[Cell]) -> list[str]:
    """What a reader must know when the expectations are not those that stood when the cells were measured."""
    present = expectations_fingerprint(about.get("expect") or [])
    other = [cell for cell in cells if cell.expectations not in ("", present)]
    if not other:
        return []
    return [
        f"{len(other)} of {len(cells)} cells were measured before the present expectations were written "
        f"({present}; theirs: {', '.join(sorted({cell.expectations for cell in other}))}): a metric, selection, "
        "relation, target or tolerance was added or changed afterwards."
    ]


def _read(path: Path, read: Any) -> Any:
    return read(path) if path.exists() else []


def _read_failed(path: Path) -> list[FailedCell]:
    try:
        return [FailedCell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a list of failed cells ({error})") from None


def _read_about(path: Path) -> Mapping[str, Any]:
    """The keys of an experiment's YAML that are the report's; the rest may refer to what only Hydra knows."""
    if not path.exists():
        return {}
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise ValueError("an experiment is a mapping")
        keys = [key for key in ("order", "title", "question", "run", "notes", "expect") if key in config]
        about = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    assert isinstance(about, dict)
    return {str(key): value for key, value in about.items()}
