"""One cell of an experiment's grid: a folder that is either finished or resumable.

A cell is identified by its composed configuration. Its folder holds what the cell measured:

    records.csv     one row a figure, see benchmarks/record.py
    curves.json     series for the report's figures
    cell.json       configuration, code, machine, time; written last, so that its presence means: finished
"""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from benchmarks.expectation import expectations_fingerprint
from benchmarks.record import Cell, Record, write_records
from benchmarks.tracking import CsvTracker
from traces.atomic import write_text_atomically

# where a cell is kept, who is told and what is claimed do not change what it measures
NOT_IDENTITY = (
    "logger",
    "outputs",
    "title",
    "question",
    "entry",
    "minutes",
    "at_scale",
    "expect",
    "notes",
    "run",
    "order",
)
PACKAGES = ("moelab", "torch", "lightning", "numpy", "scipy", "statsforecast", "hydra-core", "wandb")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Measurement:
    """What a cell measured.

    Attributes:
        records: rows without a cell fingerprint, which `run_cell` fills in.
        curves: {"figure", "panel", "series", "x", "y", "setting", "seed"} each.
        data_fingerprint: of the text or trace the cell read.
    """

    records: list[Record] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    data_fingerprint: str = ""


def identity(config: DictConfig) -> dict[str, Any]:
    """Everything in a composed configuration that changes what is measured, as plain data."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in NOT_IDENTITY}


def fingerprint(config: DictConfig) -> str:
    """Twelve hex digits that change with a configuration's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


def cell_folder(config: DictConfig, *labels: str) -> Path:
    """outputs/SCALE/EXPERIMENT/LABELS-FINGERPRINT, readable and unique."""
    name = "-".join([*labels, fingerprint(config)])
    return Path(config.outputs) / config.scale / config.experiment / name


def run_cell(config: DictConfig, labels: list[str], measure: Callable[[DictConfig, Path, Any], Measurement]) -> Path:
    """Measure a cell unless its folder says that this is done; returns the folder.

    Args:
        config: composed by Hydra.
        labels: the cell's readable name, e.g. setting, seed and method.
        measure: (config, folder, tracker) -> Measurement; resumes from the folder what it can.
    """
    folder = cell_folder(config, *labels)
    if (folder / "cell.json").exists():
        print(f"already measured: {folder}")
        return folder
    if not is_first_process():
        measure(config, folder, CsvTracker())
        return folder
    tracker = instantiate(config.logger)
    started = time.monotonic()
    run_id = tracker.start(folder, labels, config.experiment, config.entry, identity(config))
    measurement = measure(config, folder, tracker)
    _write_figures(config, folder, measurement)
    tracker.finish(folder, measurement)
    _write_cell(config, folder, measurement.data_fingerprint, time.monotonic() - started, run_id)
    print(f"measured: {folder / 'records.csv'}")
    return folder


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn every fault of the user's into one line that names it; HYDRA_FULL_ERROR=1 asks for the traceback instead.

    Raises:
        SystemExit: with that line.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        # Hydra wraps what a constructor raises: the user needs the innermost sentence
        raise SystemExit(f"error: {_cause(error)}") from error


def is_first_process() -> bool:
    """Whether this process is rank 0: a launcher starts the others with the same command, and they only compute."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _write_figures(config: DictConfig, folder: Path, measurement: Measurement) -> None:
    if not measurement.records:
        raise ValueError(f"{folder}: nothing was measured")
    identified = [replace(row, cell=fingerprint(config)) for row in measurement.records]
    write_records(folder / "records.csv", identified)
    write_text_atomically(folder / "curves.json", json.dumps({"curves": measurement.curves}))


def _write_cell(config: DictConfig, folder: Path, data_fingerprint: str, seconds: float, run_id: str) -> None:
    cell = Cell(
        cell=fingerprint(config),
        experiment=config.experiment,
        config=identity(config),
        commit=commit(),
        versions=versions(),
        machine=machine(),
        data_fingerprint=data_fingerprint,
        seconds=round(seconds, 1),
        run_id=run_id,
        recorded=datetime.date.today().isoformat(),
        expectations=expectations_fingerprint(OmegaConf.to_container(config.get("expect") or OmegaConf.create([]))),
    )
    write_text_atomically(folder / "cell.json", json.dumps(asdict(cell), indent=1) + "\n")


def commit() -> str:
    """The checkout's commit, with "+" where files differ from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Installed versions of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found | {"megablocks": _megablocks()}


def _megablocks() -> str:
    """Its version and which of its parts are its own here: on stand-ins a run measures torch."""
    try:
        installed = version("megablocks")
    except PackageNotFoundError:
        return "absent"
    # imports torch, which forecasts and plans do without
    from models.megablocks import native_parts

    native = [part for part, is_native in native_parts().items() if is_native]
    return f"{installed}, native: {', '.join(native) or 'nothing, torch stand-ins'}"


def machine() -> str:
    """Processor and core count; the node's name is nobody's business."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown processor",
    )


def compose(root: str, overrides: list[str]) -> DictConfig:
    """Compose a root configuration, inside a Hydra application or outside one."""
    return compose_with_choices(root, overrides)[0]


def compose_with_choices(root: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The composed configuration, and the chosen file of each group, as an application finds it in HydraConfig."""
    if not GlobalHydra.instance().is_initialized():
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose_with_choices(root, overrides)
    config = hydra.compose(root, overrides, return_hydra_config=True)
    choices = plain_choices(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def plain_choices(choices: Mapping[Any, Any] | DictConfig) -> dict[str, str]:
    """Group -> chosen file name, from what Hydra noted."""
    return {str(group): str(name) for group, name in choices.items()}
