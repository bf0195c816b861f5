"""Differences are paired, continuations are averaged within a parent, and the bootstrap reads the right arms."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.compare_quality import add_bootstrap, parent_rows
from benchmarks.paired import TaskScore, write_scores
from benchmarks.record import Record, write_records
from benchmarks.rows import Rows


@pytest.fixture
def config():
    return OmegaConf.create(
        {
            "experiment": "toy",
            "scale": "smoke",
            "setting": "micro8",
            "seed": -1,
            "arm": {"steps": 250, "num_items": 4},
            "bootstrap": {"seed": 0, "resamples": 20},
        }
    )


def arm(folder: Path, loss: float, correct: list[int]) -> Path:
    share = float(np.mean(correct))
    figures = {"held_out/all": loss, "accuracy/one": share, "accuracy/two": 1.0, "causal": 1.0}
    figures["accuracy_mean"] = (share + 1.0) / 2
    write_records(
        folder / "records.csv",
        [Record("a", "smoke", "cpu", "s", 0, "r", metric, value, "c", floor=0.25) for metric, value in figures.items()],
    )
    tasks = {"one": np.array(correct, bool), "two": np.ones(4, bool)}
    write_scores(folder / "items.npz", {task: TaskScore(items, 0.25, task) for task, items in tasks.items()})
    return folder


def test_a_parents_continuations_are_averaged_and_paired(config, tmp_path: Path):
    mine = [arm(tmp_path / f"m{i}", loss, [1, 1, 0, 0]) for i, loss in enumerate([3.0, 4.0])]
    plain = [arm(tmp_path / f"p{i}", loss, [1, 0, 0, 0]) for i, loss in enumerate([2.5, 3.9])]
    rows = parent_rows(config, 7, "c2r_t3", mine, plain)
    found = {row.metric: row for row in rows}
    assert {row.seed for row in rows} == {7}
    assert {(row.method, row.horizon, row.count) for row in rows} == {("c2r_t3", 250, 2)}
    assert found["held_out/all"].value == 3.5
    assert found["held_out/all/over_plain"].value == pytest.approx(0.3)
    assert found["accuracy_mean"].value == pytest.approx(0.75)
    assert found["accuracy_mean/over_plain"].value == pytest.approx(0.125)
    assert "causal" not in found
    assert (found["accuracy/one"].floor, found["accuracy/one"].value) == (0.25, 0.5)
    assert np.isnan(found["held_out/all"].floor), "chance is of tasks only"
    assert config.seed == -1, "the analysis' own configuration stays as it was"


def test_the_bootstrap_is_mine_less_plain(config, tmp_path: Path):
    mine = [[arm(tmp_path / "m", 3.0, [1, 1, 1, 1])]]
    plain = [[arm(tmp_path / "p", 3.0, [0, 0, 0, 0])]]
    rows = Rows(config, method="c2r_t3")
    add_bootstrap(rows, config, mine, plain)
    found = {row.metric: row.value for row in rows.records}
    # one task of two is gained entirely, in every resample
    assert found == {
        f"accuracy_difference/{name}": value
        for name, value in {"mean": 0.5, "low": 0.5, "high": 0.5, "detectable": 0.0}.items()
    }
    assert {row.seed for row in rows.records} == {-1}


def test_a_router_that_sees_later_tokens_is_refused(config, tmp_path: Path):
    mine = arm(tmp_path / "m", 3.0, [1, 1, 1, 1])
    rows = (tmp_path / "m" / "records.csv").read_text().replace("causal,1", "causal,0")
    (tmp_path / "m" / "records.csv").write_text(rows)
    with pytest.raises(ValueError, match="m: its router looks at later tokens"):
        parent_rows(config, 0, "expert_choice", [mine], [arm(tmp_path / "p", 3.0, [0, 0, 0, 0])])
