"""`python -m benchmarks.evaluate` on an untrained model: it scores about chance, and says so in records."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from benchmarks.cell import compose
from benchmarks.evaluate import evaluate_tasks
from benchmarks.record import read_records
from benchmarks.tasks.suite import TASKS, TOY_ITEMS
from benchmarks.trained import read_module, run_config
from models.data import TextDataModule
from models.language_model import LanguageModel

pytest.importorskip("lm_eval", reason="the tasks need the extra [evaluate]")

Run = Callable[..., CompletedProcess[str]]
OF_RUN = ("trace.setting=micro8", "trace.scale=smoke")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def run_folder(outputs: Path, keep_run: Callable[..., LanguageModel]) -> Path:
    """The folder of a finished run of an untrained model."""
    keep_run(compose("train", ["setting=micro8", "scale=smoke", f"outputs={outputs}"]), outputs / "run")
    return outputs / "run"


@pytest.fixture(scope="module")
def built(outputs: Path, run_folder: Path) -> tuple[LanguageModel, TextDataModule]:
    return read_module(run_config(run_folder, str(outputs)), run_folder)


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
    arguments = (*OF_RUN, f"trace.run={run_folder}", f"outputs={outputs}", "num_items=20", "logger=csv")
    done = run_module("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    (path,) = outputs.rglob("records.csv")
    records = read_records(path)
    assert {(row.experiment, row.scale, row.setting) for row in records} == {("evaluate", "smoke", "micro8")}
    found = {row.metric: row for row in records}
    assert {row.method for row in records} == {"-"}
    accuracy = {name.split("/")[1]: row.value for name, row in found.items() if name.startswith("accuracy/")}
    assert accuracy.keys() == set(TASKS)
    assert {row.count for name, row in found.items() if name.startswith("accuracy/")} == {20}
    assert found["accuracy_mean"].value == pytest.approx(np.mean(list(accuracy.values())), abs=1e-5)
    assert found["accuracy_mean"].floor == pytest.approx(0.275)
    assert sum(name.startswith("bits_per_byte/") for name in found) == 9
    # 11 bits a token, 2.7 bytes a token
    assert found["bits_per_byte/all"].value == pytest.approx(4.1, abs=0.3)
    assert run_module("evaluate", *arguments).stdout.startswith("already measured")


class TestBadInput:
    def test_is_one_sentence(self, run_module: Run, outputs: Path, run_folder: Path) -> None:
        arguments = (*OF_RUN, f"trace.run={run_folder}", f"outputs={outputs}", "num_items=0", "logger=csv")
        done = run_module("evaluate", *arguments)
        assert done.returncode == 1
        assert done.stderr.strip() == "error: 0 items a task: a task has 1 to 1000"
