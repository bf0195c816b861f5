"""`python -m benchmarks.evaluate` on an untrained model: it scores about chance, and says so in records."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from benchmarks.cell import compose
from benchmarks.evaluate import evaluate_tasks, find_checkpoint, load_module, with_checkpoint
from benchmarks.record import read_records
from benchmarks.tasks.suite import TASKS, TOY_ITEMS
from benchmarks.train import build_data, build_module
from models.data import TextDataModule
from models.language_model import LanguageModel

pytest.importorskip("lm_eval", reason="the tasks need the extra [evaluate]")

Run = Callable[..., CompletedProcess[str]]
OF_RUN = ("trace.setting=micro8", "trace.scale=smoke")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def training(outputs: Path) -> DictConfig:
    return compose("train", ["setting=micro8", "scale=smoke", f"outputs={outputs}"])


@pytest.fixture(scope="module")
def built(training: DictConfig) -> tuple[LanguageModel, TextDataModule]:
    data = build_data(training)
    torch.manual_seed(0)
    module = build_module(training, data)
    module.configure_model()
    return module, data


@pytest.fixture(scope="module")
def run_folder(outputs: Path, built: tuple[LanguageModel, TextDataModule]) -> Path:
    """The folder of a run that ended before its first step."""
    module, _ = built
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    (outputs / "run" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, outputs / "run" / "checkpoints" / "step=7.ckpt")
    return outputs / "run"


def test_an_untrained_model_scores_about_chance(built: tuple[LanguageModel, TextDataModule]) -> None:
    module, data = built
    scores = evaluate_tasks(module.train(), data, data.cache)
    assert module.training
    assert tuple(scores) == TASKS
    assert all(len(score.correct) == TOY_ITEMS for score in scores.values())
    # four standard errors of 100 items
    assert all(abs(score.accuracy - score.chance) < 0.2 for score in scores.values())
    assert np.mean([score.accuracy - score.chance for score in scores.values()]) == pytest.approx(0, abs=0.06)


def test_scores_repeat(built: tuple[LanguageModel, TextDataModule]) -> None:
    module, data = built
    first, second = (evaluate_tasks(module, data, data.cache, 20) for _ in range(2))
    for name in TASKS:
        assert first[name].fingerprint == second[name].fingerprint
        np.testing.assert_array_equal(first[name].correct, second[name].correct)


@pytest.mark.parametrize("items", [0, 1001])
def test_another_number_of_items_is_refused(built: tuple[LanguageModel, TextDataModule], items: int) -> None:
    module, data = built
    with pytest.raises(ValueError, match=f"{items} items a task: a task has 1 to 1000"):
        evaluate_tasks(module, data, data.cache, items)


def test_entry_point_writes_a_row_a_task_and_a_domain(run_module: Run, outputs: Path, run_folder: Path) -> None:
    arguments = (*OF_RUN, f"checkpoint={run_folder}", f"outputs={outputs}", "num_items=20", "logger=csv")
    done = run_module("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    (path,) = outputs.rglob("records.csv")
    records = read_records(path)
    assert {(row.experiment, row.scale, row.setting) for row in records} == {("evaluate", "smoke", "micro8")}
    accuracy, chance, bits = (
        {row.method: row.value for row in records if row.metric == metric}
        for metric in ("accuracy", "chance", "bits_per_byte")
    )
    assert accuracy.keys() == chance.keys() == set(TASKS)
    assert {row.count for row in records if row.metric == "accuracy"} == {20}
    means = {row.metric: row.value for row in records if row.method == "-"}
    assert means["accuracy_mean"] == pytest.approx(np.mean(list(accuracy.values())), abs=1e-5)
    assert means["chance_mean"] == pytest.approx(0.275)
    assert len(bits) == 9
    # 11 bits a token, 2.7 bytes a token
    assert bits["all"] == pytest.approx(4.1, abs=0.3)
    assert run_module("evaluate", *arguments).stdout.startswith("already measured")


class TestBadInput:
    def test_is_one_sentence(self, run_module: Run, outputs: Path, run_folder: Path) -> None:
        arguments = (*OF_RUN, f"checkpoint={run_folder}", f"outputs={outputs}", "num_items=0", "logger=csv")
        done = run_module("evaluate", *arguments)
        assert done.returncode == 1
        assert done.stderr.strip() == "error: 0 items a task: a task has 1 to 1000"

    @pytest.mark.parametrize(
        ("checkpoint", "said"),
        [
            ("/nowhere", r"/nowhere: no checkpoints/step=\*\.ckpt there"),
            ("null", "this run is not finished; run `python -m benchmarks.train setting=micro8 seed=0 scale=smoke`"),
        ],
    )
    def test_a_missing_run_is_named(self, outputs: Path, checkpoint: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            find_checkpoint(compose("evaluate", [*OF_RUN, f"checkpoint={checkpoint}", f"outputs={outputs}"]))

    def test_a_checkpoint_of_another_vocabulary(
        self, training: DictConfig, built: tuple[LanguageModel, TextDataModule], tmp_path: Path
    ) -> None:
        module, data = built
        torch.save({"state_dict": {}, "shape": module.decoder.shape | {"vocab_size": 8192}}, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=r"it has vocab_size = 8192 \(here 2048\)"):
            load_module(training, data, tmp_path / "x.ckpt")


def test_the_newest_checkpoint_is_read_and_part_of_the_cell(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=30.ckpt").write_bytes(b"later")
    (tmp_path / "checkpoints" / "step=4.ckpt").write_bytes(b"earlier")
    configs = [compose("evaluate", [*OF_RUN, f"checkpoint={folder}"]) for folder in (run_folder, tmp_path)]
    assert find_checkpoint(configs[1]).name == "step=30.ckpt"
    assert len({with_checkpoint(config).training_run for config in configs}) == 2
