"""A trained model, by the folder of its run: a training run or an arm of a comparison of routers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks.record import read_cell
from benchmarks.recorded import training_config, training_folder
from benchmarks.train import build_data, build_module, newest_checkpoint
from models.data import TextDataModule
from models.language_model import LanguageModel
from traces.atomic import write_atomically

# what a router was given that no YAML can hold, beside the checkpoints of its run
GIVEN = "given.npz"


def with_trained(config: DictConfig) -> DictConfig:
    """Make the run that `trace` names part of an analysis cell's identity, and take on its name.

    Raises:
        ValueError: it is not finished; says how to train it.
    """
    cell = read_cell(run_folder(config))
    with open_dict(config):
        config.training_run = cell.cell
        config.setting, config.seed, config.scale = (cell.config[name] for name in ("setting", "seed", "scale"))
    return config


def run_folder(config: DictConfig) -> Path:
    """The folder that an analysis' `trace.run` names, or else that of the training run which `trace` names."""
    return finished(Path(config.trace.run) if config.trace.run else training_folder(config, config.seed), config)


def finished(folder: Path, config: DictConfig) -> Path:
    """The folder itself.

    Raises:
        ValueError: it holds no finished run with a checkpoint; says how to train one.
    """
    if newest_checkpoint(folder) is None or not (folder / "cell.json").exists():
        raise ValueError(
            f"{folder}: no finished run with a checkpoint; remove the folder if there is one and run "
            f"`python -m benchmarks.train setting={config.setting} seed={config.seed} scale={config.scale}`; an "
            "analysis takes any other run's folder by trace.run=FOLDER"
        )
    return folder


def run_config(folder: Path, outputs: str) -> DictConfig:
    """The configuration of a finished run, as its cell.json holds it."""
    return OmegaConf.create({**read_cell(folder).config, "outputs": outputs})


def read_parent(config: DictConfig) -> tuple[LanguageModel, TextDataModule]:
    """The model of the training run of a configuration's setting, seed and scale, and its text."""
    training = training_config(config.setting, config.seed, config.scale, config.outputs)
    return read_module(training, finished(training_folder(training, training.seed), training))


def read_module(training: DictConfig, folder: Path) -> tuple[LanguageModel, TextDataModule]:
    """A run's model with the weights of its newest checkpoint, and the text it was trained on.

    Raises:
        ValueError: the checkpoint is of a model of other sizes.
    """
    data = build_data(training)
    module = build_module(training, data, **read_given(folder))
    module.configure_model()
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None, "run_folder found it"
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    return module, data


@contextmanager
def on_one_device(config: DictConfig, module: LanguageModel) -> Iterator[None]:
    """The module on one device of the configured accelerator, computing at the configured precision."""
    trainer = config.trainer
    fabric = L.Fabric(accelerator=trainer.accelerator, devices=1, precision=trainer.precision)
    module.to(fabric.device)
    with fabric.autocast():
        yield


def write_given(folder: Path, given: dict[str, np.ndarray]) -> None:
    """Keep what a run's routers were given."""
    write_atomically(folder / GIVEN, lambda file: np.savez_compressed(file, **given))  # type: ignore[arg-type]


def read_given(folder: Path) -> dict[str, np.ndarray]:
    """What `write_given` kept; nothing where a run's routers were given nothing."""
    if not (folder / GIVEN).exists():
        return {}
    with np.load(folder / GIVEN, allow_pickle=False) as archive:
        return dict(archive)
