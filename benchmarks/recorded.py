"""The loads that an analysis cell is about: of a recorded training run, of a dump, or drawn by a workload's name."""

import hashlib
from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from benchmarks.cell import cell_folder, compose, fingerprint
from traces.foreign import read_foreign
from traces.load import LoadTrace
from traces.routing import RoutingTrace
from traces.store import read_loads, read_routings


@cache
def training_config(setting: str, seed: int, scale: str, outputs: str) -> DictConfig:
    """The composed configuration of a training run."""
    return compose("train", [f"setting={setting}", f"seed={seed}", f"scale={scale}", f"outputs={outputs}"])


def training_folder(config: DictConfig, seed: int) -> Path:
    """The folder of the run that `config` names by setting and scale."""
    training = training_config(config.setting, seed, config.scale, config.outputs)
    return cell_folder(training, training.setting, f"seed{training.seed}")


def with_run(config: DictConfig) -> DictConfig:
    """Make the run part of the cell's identity: a cell is measured again when its run changes.

    A foreign trace brings its own name and seed, and is identified by its counts; a workload by its configuration.

    Raises:
        ValueError: a workload and a foreign trace.
    """
    with open_dict(config):
        # an analysis of weights takes neither
        if is_drawn(config):
            if config.trace.path is not None:
                raise ValueError(f"loads are drawn or read: take workload= or trace.path={config.trace.path}, not both")
            config.setting = config.workload.name
            return config
        config.pop("drawn", None)
        if config.trace.get("path") is None:
            run = training_config(config.setting, config.seed, config.scale, config.outputs)
            config.training_run = fingerprint(run)
        else:
            trace = read_given(config)
            config.setting, config.seed, config.scale = trace.source.model, trace.source.seed, "foreign"
            config.training_run = hashlib.sha256(trace.step.tobytes() + trace.tokens.tobytes()).hexdigest()[:12]
    return config


def is_drawn(config: DictConfig) -> bool:
    """Whether a cell's loads are drawn by a workload of conf/workload."""
    return config.get("workload") is not None


def read_run(config: DictConfig, seed: int | None = None) -> LoadTrace:
    """The loads of the cell's run, of the folder that `trace.path` names, or of its workload.

    Raises:
        ValueError: the run has not been recorded to its end; says how to do that.
    """
    if config.trace.path is not None:
        return read_given(config)
    wanted = config.seed if seed is None else seed
    if is_drawn(config):
        return instantiate(config.workload)(size=instantiate(config.drawn), seed=wanted).traces()[0]
    folder = training_folder(config, wanted)
    if not (folder / "cell.json").exists():
        raise ValueError(
            f"{folder}: this run is not recorded yet; run `python -m benchmarks.train setting={config.setting} "
            f"seed={wanted} scale={config.scale}`, or name a recorded trace by trace.path=FOLDER"
        )
    trace = read_loads(folder / "trace")
    steps = training_config(config.setting, wanted, config.scale, config.outputs).trainer.max_steps
    if len(trace.step) != steps:
        raise ValueError(f"{folder}: the trace has {len(trace.step)} of {steps} steps; remove the folder, record again")
    return trace


def read_given(config: DictConfig) -> LoadTrace:
    """The loads at `trace.path`: a trace folder, or another framework's dump, with `trace.options` for its reader.

    Raises:
        ValueError: nothing there, or a damaged or unknown file, with its name.
    """
    path = Path(config.trace.path)
    return read_loads(path) if _is_ours(path) else read_foreign(path, **_options(config))[0]


def read_sampled(config: DictConfig) -> RoutingTrace | None:
    """The routings of the run that `read_run` reads the loads of, where some were kept; of drawn loads none are.

    Raises:
        ValueError: as read_given.
    """
    if is_drawn(config):
        return None
    if config.trace.path is not None and not _is_ours(path := Path(config.trace.path)):
        return read_foreign(path, **_options(config))[1]
    folder = training_folder(config, config.seed) / "trace" if config.trace.path is None else path
    return read_routings(folder) if any(folder.glob("routing-*.npz")) else None


def _is_ours(path: Path) -> bool:
    """Whether our own reader is to say what is there, or what is wrong: also if a trace lies one folder deeper."""
    return not path.exists() or any((folder / "manifest.json").exists() for folder in (path, path / "trace"))


def _options(config: DictConfig) -> dict[str, int]:
    return dict(config.trace.get("options") or {})


def read_noise(config: DictConfig) -> dict[int, LoadTrace]:
    """Repeated batches through fixed weights by the step at which they were routed; empty for any other loads."""
    if config.trace.path is not None or is_drawn(config):
        return {}
    folders = sorted(training_folder(config, config.seed).glob("noise-*"))
    return {int(folder.name.split("-")[1]): read_loads(folder) for folder in folders}
