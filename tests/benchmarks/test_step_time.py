"""Whole steps in turns on two ranks, and what is made of their seconds."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import benchmarks.step_time
from benchmarks.cell import compose
from benchmarks.cluster.ground import Loopback
from benchmarks.cluster.ranks import run_ranks
from benchmarks.exchange_job import Variant
from benchmarks.record import read_records
from benchmarks.rows import Rows
from benchmarks.step_job import StepJob, read_job, read_measured, write_job
from benchmarks.step_time import add_steps, interval, refuse_crowded
from models.callbacks.step_timer import PARTS
from placement.topology import Placement, Topology

ROOT = Path(__file__).resolve().parents[2]
CONFIG = OmegaConf.create({"experiment": "toy", "scale": "smoke", "setting": "micro8", "seed": 0})
ORDERS = {"topk.contiguous": np.arange(8), "topk.reversed": np.array([7, 0, 6, 1, 5, 2, 4, 3])}
VARIANTS = {
    "topk/contiguous/per_expert": Variant("topk", "topk.contiguous", "per_expert"),
    "topk/contiguous/per_device": Variant("topk", "topk.contiguous", "per_device"),
    "topk/reversed/per_device": Variant("topk", "topk.reversed", "per_device"),
}


def job(run: str, outputs: str, **changes: int) -> StepJob:
    placements = {name: Placement(np.tile(order.reshape(2, 4), (2, 1, 1))) for name, order in ORDERS.items()}
    numbers = {"blocks": 2, "steps": 2, "seed": 0} | changes
    return StepJob(
        Topology(2, 1, 1e9, 1e9, 0.0, 0.0), dict.fromkeys(ORDERS, run), placements, VARIANTS, outputs=outputs, **numbers
    )


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = job("a/run", "outputs", seed=3)
    write_job(tmp_path, written)
    found = read_job(tmp_path)
    for name in ("topology", "runs", "variants", "blocks", "steps", "seed", "outputs"):
        assert getattr(found, name) == getattr(written, name)
    for name, placement in written.placements.items():
        np.testing.assert_array_equal(found.placements[name].slots, placement.slots)


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"steps": 0}])
def test_a_job_needs_a_step(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one block of one step"):
        job("a/run", "outputs", **changes)


def test_an_unknown_dispatcher_is_refused() -> None:
    with pytest.raises(ValueError, match="dispatcher must be one of per_expert, per_device, per_node, got 'foo'"):
        Variant("topk", "topk.contiguous", "foo")


@pytest.fixture(scope="module")
def measured(keep_run: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Two ranks on loopback: the folder of their job, and the weights that both models started from."""
    folder = tmp_path_factory.mktemp("steps")
    changes = ["setting=micro8", "scale=smoke", "data.domains=[dictionary,facts]", "recording.probe_sequences=2"]
    module = keep_run(compose("train", [*changes, f"outputs={folder}"]), folder / "run")
    write_job(folder / "steps", job(str(folder / "run"), str(folder)))
    program = Path(__file__).with_name("step_weights.py")
    command = [sys.executable, str(program), str(folder / "steps"), "gloo"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        run_ranks(command, Loopback(2, 1), folder / "log", timeout=600.0)
    return folder / "steps", {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


class TestTwoRanks:
    def test_every_variant_block_and_part_was_timed_on_both(self, measured) -> None:
        found = read_measured(measured[0])
        assert list(found) == list(VARIANTS)
        for seconds in found.values():
            assert seconds.shape == (2, 2, len(PARTS))
            assert (seconds > 0).all()

    def test_models_train_and_ranks_agree_on_dense_weights(self, measured) -> None:
        folder, start = measured
        with np.load(folder / "weights-0.npz") as first, np.load(folder / "weights-1.npz") as second:
            for number, order in enumerate(ORDERS.values()):
                for name, before in start.items():
                    key = f"models.{number}.{name}"
                    if ".experts." in name:
                        together = np.concatenate([first[key], second[key]])[np.argsort(order)]
                        assert 0 < np.abs(together - before).max() < 0.01
                    else:
                        np.testing.assert_array_equal(first[key], second[key])
                        assert 0 < np.abs(first[key] - before).max() < 0.01


class TestRows:
    @pytest.fixture
    def rows(self) -> Rows:
        return Rows(CONFIG, ground="toy")

    def values(self, rows: Rows, method: str) -> dict[str, float]:
        return {row.metric: row.value for row in rows.records if row.method == method}

    def test_a_step_takes_as_long_as_on_the_slowest_rank(self, rows: Rows) -> None:
        # router, dispatch, experts, combine, rest of two ranks and three blocks; the last block was slow for all
        slowness = np.array([1.0, 1.0, 10.0])[:, None]
        base = np.stack([slowness * [1, 4, 2, 2, 1], slowness * [1, 6, 2, 2, 1]])
        half = np.stack([slowness * [1, 1, 2, 1, 1], slowness * [1, 1, 2, 1, 1]])
        add_steps(rows, {"base": base, "half": half}, seed=0)
        expected = {"router": 1, "dispatch": 5, "experts": 2, "combine": 2, "rest": 2}
        found = self.values(rows, "base")
        assert {part: found[f"step_seconds/{part}"] for part in expected} == expected
        assert found["step_seconds"] == 12
        assert found["all_to_all_share"] == pytest.approx(7 / 12)
        assert found["step_over_baseline"] == found["step_over_baseline/low"] == 1.0
        # both were slow in the same block, so their ratio was the same in all
        found = self.values(rows, "half")
        assert [found[f"step_over_baseline{end}"] for end in ("", "/low", "/high")] == pytest.approx([0.5] * 3)
        assert found["step_seconds/low"] == 6.0 < found["step_seconds/high"] == 60.0
        assert {row.count for row in rows.records} == {3}
        assert {row.ground for row in rows.records} == {"toy"}

    def test_interval_covers_the_median_of_what_was_drawn(self) -> None:
        rng = np.random.default_rng(0)
        covered = [low <= 0 <= high for low, high in (interval(rng.normal(size=15), seed) for seed in range(100))]
        assert 85 <= sum(covered) <= 100
        assert interval(np.full(5, 2.0), 0) == (2.0, 2.0)


class TestCrowding:
    def test_more_ranks_than_cores_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmarks.step_time, "usable_cores", lambda: 2)
        refuse_crowded(Loopback(2, 1))
        with pytest.raises(ValueError, match="8 ranks on 2 cores: whole steps would time the scheduler"):
            refuse_crowded(Loopback(4, 2))

    def test_ranks_on_devices_of_their_own_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmarks.step_time, "usable_cores", lambda: 1)
        ground = Loopback(4, 2)
        ground.backend = "nccl"
        refuse_crowded(ground)


@pytest.mark.slow
def test_as_a_user_runs_it(run_module: Callable, tmp_path: Path) -> None:
    where = [f"outputs={tmp_path}", "logger=csv"]
    trained = run_module("train", "setting=micro8", "scale=smoke", *where)
    assert trained.returncode == 0, trained.stderr
    arm = ("setting=micro8", "scale=smoke", "router=topk", "steps=20", "start=parent", "seed=0", "continuation=0")
    trained = run_module("train_router", *arm, *where)
    assert trained.returncode == 0, trained.stderr
    asked = ["trace.setting=micro8", "trace.scale=smoke", "arm.steps=20", "step.blocks=3", "step.steps=2"]
    done = run_module("step_time", *asked, *where)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("smoke/step_time/*/records.csv")
    records = read_records(path)
    assert {row.ground for row in records} == {"loopback"}
    assert {row.method for row in records} >= {"topk/contiguous/per_expert", "topk/colocated_load/per_device"}
    again = run_module("step_time", *asked, *where)
    assert "already measured" in again.stdout
