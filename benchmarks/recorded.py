"""The recorded training run that an analysis cell is about."""

from functools import cache
from pathlib import Path

from omegaconf import DictConfig, open_dict

from benchmarks.cell import cell_folder, compose, fingerprint
from traces.load import LoadTrace
from traces.store import read_loads


@cache
def training_config(setting: str, seed: int, scale: str, outputs: str) -> DictConfig:
    """The composed configuration of a training run."""
    return compose("train", [f"setting={setting}", f"seed={seed}", f"scale={scale}", f"outputs={outputs}"])


def training_folder(config: DictConfig, seed: int | None = None) -> Path:
    """The folder of the run that `config` names by setting, seed and scale; `seed` asks for a sister run's."""
    training = training_config(config.setting, config.seed if seed is None else seed, config.scale, config.outputs)
    return cell_folder(training, training.setting, f"seed{training.seed}")


def with_run(config: DictConfig) -> DictConfig:
    """Make the training run part of the cell's identity: a cell is measured again when its run changes."""
    if config.trace.path is None:
        run = training_config(config.setting, config.seed, config.scale, config.outputs)
        with open_dict(config):
            config.training_run = fingerprint(run)
    return config


def read_run(config: DictConfig, seed: int | None = None) -> LoadTrace:
    """The loads of the cell's run, or of the folder that `trace.path` names.

    Raises:
        ValueError: the run has not been recorded to its end; says how to do that.
    """
    if config.trace.path is not None:
        return read_loads(Path(config.trace.path))
    folder = training_folder(config, seed)
    if not (folder / "cell.json").exists():
        wanted = config.seed if seed is None else seed
        raise ValueError(
            f"{folder}: this run is not recorded yet; run `python -m benchmarks.train setting={config.setting} "
            f"seed={wanted} scale={config.scale}`, or name a recorded trace by trace.path=FOLDER"
        )
    return read_loads(folder / "trace")


def read_noise(config: DictConfig) -> dict[int, LoadTrace]:
    """Repeated batches through fixed weights by the step at which they were routed; empty for a foreign trace."""
    if config.trace.path is not None:
        return {}
    folders = sorted(training_folder(config).glob("noise-*"))
    return {int(folder.name.split("-")[1]): read_loads(folder) for folder in folders}
