"""`python -m benchmarks.train` as a user runs it: killed at any moment, and on two ranks."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.record import read_records
from traces.store import read_loads, read_routings

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80
ARGUMENTS = [
    "setting=micro8",
    "scale=smoke",
    "logger=csv",
    f"trainer.max_steps={STEPS}",
    "+trainer.enable_progress_bar=false",
    "data.domains=[dictionary,facts]",
    "data.val_sequences_per_domain=4",
    "recording.checkpoint_every=8",
    "recording.chunk_steps=5",
    "recording.routing_every=10",
    "recording.probe_every=4",
    "recording.probe_sequences=2",
    "recording.noise_batches=2",
    # a mean over ranks of their balance losses is not the balance loss of the whole batch
    "router.balance_weight=0",
]


class Run:
    """One cell of training in a folder of its own, started as often as it takes."""

    def __init__(self, outputs: Path, cache: Path, *changes: str) -> None:
        self.outputs, self.changes = outputs, changes
        outputs.mkdir()
        (outputs / "cache").symlink_to(cache)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train", *ARGUMENTS, *self.changes, f"outputs={self.outputs}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=(self.outputs / "log").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> Path:
        """Run to the end and return the cell's folder."""
        assert self.start().wait(timeout=240) == 0, (self.outputs / "log").read_text()
        (folder,) = self.outputs.glob("smoke/train/*")
        assert (folder / "cell.json").exists()
        return folder

    def kill(self, when: Callable[[], bool], delay: float = 0.0) -> None:
        """Start, and kill `delay` seconds after `when` came true; the run must not have ended by then."""
        process = self.start()
        while not when():
            assert process.poll() is None, (self.outputs / "log").read_text()
            time.sleep(0.003)
        time.sleep(delay)
        process.kill()
        process.wait()
        assert not list(self.outputs.glob("smoke/train/*/cell.json")), "ended before it was killed"

    def checkpoint(self) -> int:
        """Step of the newest checkpoint, 0 without one."""
        found = self.outputs.glob("smoke/train/*/checkpoints/step=*.ckpt")
        return max((int(path.stem.split("=")[1]) for path in found), default=0)

    def trains(self) -> bool:
        return any(self.outputs.glob("smoke/train/*/trace/manifest.json"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Everything that a finished run leaves, by name."""
    found = {path.name: read_loads(path).tokens for path in [folder / "trace", folder / "probe"]}
    found |= {path.name: read_loads(path).tokens for path in folder.glob("noise-*")}
    found |= {f"{name}/step": read_loads(folder / name).step for name in ("trace", "probe")}
    found["routing"] = read_routings(folder / "trace").expert_indices
    state = torch.load(folder / "checkpoints" / f"step={STEPS}.ckpt", weights_only=True)
    found |= {name: tensor.numpy() for name, tensor in state["state_dict"].items()}
    moments = state["optimizer_states"][0]["state"]
    found |= {f"{number}/{name}": moments[number][name].numpy() for number in moments for name in moments[number]}
    return found


def assert_same(folder: Path, expected: Path) -> None:
    found, whole = arrays(folder), arrays(expected)
    assert found.keys() == whole.keys()
    assert [name for name in whole if not np.array_equal(found[name], whole[name])] == []
    assert (folder / "records.csv").read_bytes() == (expected / "records.csv").read_bytes()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """The folder of the run that nobody interrupts."""
    return Run(tmp_path_factory.mktemp("whole") / "run", cache).finish()


def test_uninterrupted_run_records_everything(whole):
    found = arrays(whole)
    assert found["trace/step"].tolist() == list(range(STEPS))
    assert found["probe/step"].tolist() == list(range(0, STEPS, 4))
    assert (found["trace"].sum(-1) == 8 * 32 * 2).all()
    assert len(found["routing"]) == STEPS // 10
    rows = {record.metric: record.value for record in read_records(whole / "records.csv")}
    assert rows.keys() == {"held_out/all", "held_out/dictionary", "held_out/facts", "epochs", "tokens_per_step"}
    assert rows["tokens_per_step"] == 8 * 32


def test_a_kill_after_the_last_checkpoint_costs_no_figure(whole, cache, tmp_path):
    run = Run(tmp_path / "run", cache)
    folder = run.finish()
    for name in ("cell.json", "records.csv"):
        (folder / name).unlink()
    assert_same(run.finish(), whole)


def test_killed_run_goes_on_as_if_nothing_had_happened(cache, whole, tmp_path):
    run = Run(tmp_path / "run", cache)
    run.kill(run.trains)
    assert run.checkpoint() == 0, "the first kill comes before any checkpoint"
    # another moment each time, as a fixed one would always hit the same line
    run.kill(lambda: run.checkpoint() >= 16, delay=random.uniform(0, 0.1))
    assert_same(run.finish(), whole)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["router=random", "trainer.accumulate_grad_batches=2"])
def test_run_killed_many_times(cache, tmp_path, change):
    expected = Run(tmp_path / "whole", cache, change).finish()
    run = Run(tmp_path / "run", cache, change)
    for step in (0, 8, 16, 24, 40, 48, 64):
        run.kill(lambda step=step: run.trains() and run.checkpoint() >= step, delay=random.uniform(0, 0.15))
    assert_same(run.finish(), expected)


def test_two_ranks_record_what_one_does(cache, whole, tmp_path):
    run = Run(tmp_path / "run", cache, "trainer.devices=2", "+trainer.strategy=ddp")
    found, expected = arrays(folder := run.finish()), arrays(whole)
    for name in ("trace/step", "probe/step"):
        np.testing.assert_array_equal(found[name], expected[name])
    # the first step is the same one; later on sums in another order tip a close choice now and then
    np.testing.assert_array_equal(found["trace"][0], expected["trace"][0])
    assert (found["trace"].sum(-1) == 8 * 32 * 2).all()
    assert np.abs(found["trace"] - expected["trace"]).max() <= 5
    assert np.abs(found["probe"] - expected["probe"]).max() <= 5
    losses = [
        {record.metric: record.value for record in read_records(cell / "records.csv")} for cell in (folder, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
