"""How well does a trained model do downstream: ten tasks of our own and bits per byte.

python -m benchmarks.evaluate trace.setting=nano16 trace.seed=0 trace.scale=cpu
"""

import hashlib
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, open_dict

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.held_out import bits_per_byte
from benchmarks.paired import TaskScore
from benchmarks.recorded import training_config, training_folder, with_run
from benchmarks.rows import Rows
from benchmarks.tasks.suite import ITEMS, TASKS, write_tasks
from benchmarks.train import build_data, build_module, newest_checkpoint
from models.data import TextDataModule
from models.language_model import LanguageModel


def evaluate_tasks(
    module: LanguageModel, data: TextDataModule, cache: Path, items: int = ITEMS
) -> dict[str, TaskScore]:
    """Score a model on the first `items` items of each task.

    Args:
        module: trained on `data`'s text, its decoder built.
        data: text and tokenizer; the items come from its held-out documents.
        cache: folder that keeps the items between calls.
        items: per task, 1 to 1,000; a model with a window below 64 tokens has 100 at most.

    Raises:
        ValueError: another number of items, a text without all domains, a tokenizer of another vocabulary.
        ImportError: lm-evaluation-harness is not installed.
    """
    if not 1 <= items <= ITEMS:
        raise ValueError(f"{items} items a task: a task has 1 to {ITEMS}")
    # the extra [evaluate], and seconds to import
    from benchmarks.harness import HarnessModel, score_tasks

    training = module.training
    model = HarnessModel(module.decoder.eval(), data.tokenizer)
    scores = score_tasks(model, write_tasks(data, cache), TASKS, items)
    module.train(training)
    return scores


def load_module(training: DictConfig, data: TextDataModule, checkpoint: Path) -> LanguageModel:
    """The model of a training configuration with a checkpoint's weights.

    Raises:
        ValueError: a checkpoint of a model of other sizes.
    """
    module = build_module(training, data)
    module.configure_model()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    return module.eval()


def find_checkpoint(config: DictConfig) -> Path:
    """The newest checkpoint of the run whose folder `checkpoint` names, or else of the run that `trace` names.

    Raises:
        ValueError: there is none; says how to make one.
    """
    folder = training_folder(config, config.seed) if config.checkpoint is None else Path(config.checkpoint)
    if config.checkpoint is None and not (folder / "cell.json").exists():
        raise ValueError(
            f"{folder}: this run is not finished; run `python -m benchmarks.train setting={config.setting} "
            f"seed={config.seed} scale={config.scale}`, or name such a run's folder by checkpoint=FOLDER"
        )
    found = newest_checkpoint(folder)
    if found is None:
        raise ValueError(f"{folder}: no checkpoints/step=*.ckpt there")
    return found


def with_checkpoint(config: DictConfig) -> DictConfig:
    """Make run and checkpoint part of the cell's identity."""
    config = with_run(config)
    if config.checkpoint is not None:
        with open_dict(config):
            config.training_run = hashlib.sha256(find_checkpoint(config).read_bytes()).hexdigest()[:12]
    return config


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Accuracy and chance by task, bits per byte by domain."""
    # as in training: one primitive is cached for every expert size, which grows without bound
    torch.backends.mkldnn.enabled = False
    training = training_config(config.setting, config.seed, config.scale, config.outputs)
    data = build_data(training)
    module = load_module(training, data, find_checkpoint(config))
    rows = Rows(config)
    add_tasks(rows, evaluate_tasks(module, data, data.cache, config.num_items))
    for name, value in bits_per_byte(module, data).items():
        rows.add("bits_per_byte", value, method=name)
    return Measurement(rows.records, data_fingerprint=data.fingerprint)


def add_tasks(rows: Rows, scores: dict[str, TaskScore]) -> None:
    """A row a task, and the means over tasks."""
    for name, score in scores.items():
        rows.add("accuracy", score.accuracy, method=name, count=len(score.correct))
        rows.add("chance", score.chance, method=name, count=len(score.correct))
    rows.add("accuracy_mean", float(np.mean([score.accuracy for score in scores.values()])), count=len(scores))
    rows.add("chance_mean", float(np.mean([score.chance for score in scores.values()])), count=len(scores))


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_checkpoint(config)
        run_cell(config, [config.setting, f"seed{config.seed}"], measure)


if __name__ == "__main__":
    main()
