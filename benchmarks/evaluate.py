"""How well does a trained model do downstream: ten tasks of our own and bits per byte.

python -m benchmarks.evaluate trace.setting=nano16 trace.seed=0 trace.scale=cpu
python -m benchmarks.evaluate trace.run=outputs/cpu/train_router/ARM
"""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.held_out import bits_per_byte
from benchmarks.paired import TaskScore
from benchmarks.rows import Rows
from benchmarks.tasks.suite import ITEMS, TASKS, write_tasks
from benchmarks.trained import on_one_device, read_module, run_config, run_folder, with_trained
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


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Accuracy by task, bits per byte by domain."""
    # as in training: one primitive is cached for every expert size, which grows without bound
    torch.backends.mkldnn.enabled = False
    run = run_folder(config)
    module, data = read_module(run_config(run, config.outputs), run)
    rows = Rows(config)
    with on_one_device(run_config(run, config.outputs), module):
        add_tasks(rows, evaluate_tasks(module, data, data.cache, config.num_items))
        add_bits(rows, bits_per_byte(module, data))
    return Measurement(rows.records, data_fingerprint=data.fingerprint)


def add_tasks(rows: Rows, scores: dict[str, TaskScore], **columns: Any) -> None:
    """A row a task, beside its chance level, and the mean over tasks."""
    for name, score in scores.items():
        rows.add(f"accuracy/{name}", score.accuracy, floor=score.chance, count=len(score.correct), **columns)
    accuracy, chance = (np.mean([getattr(score, name) for score in scores.values()]) for name in ("accuracy", "chance"))
    rows.add("accuracy_mean", float(accuracy), floor=float(chance), count=len(scores), **columns)


def add_bits(rows: Rows, bits: dict[str, float], **columns: Any) -> None:
    """A row a domain, and one over all held-out text."""
    for domain, value in bits.items():
        rows.add(f"bits_per_byte/{domain}", value, **columns)


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_trained(config)
        run_cell(config, [config.setting, f"seed{config.seed}"], measure)


if __name__ == "__main__":
    main()
