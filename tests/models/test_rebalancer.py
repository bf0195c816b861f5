"""Experts that a forecast moves train on as if they had stayed, and every decision says what it expected and took."""

import json

import numpy as np
import pytest
from parity import Parity, losses
from train_cases import train_alone

from models.callbacks.rebalancer import Rebalancer
from models.rebalancing import Rebalancing
from placement.lpt import lpt
from predictors.windows import LastValue

ALWAYS, NEVER = {"margin": 0.0}, {"margin": 1e30}
BYTES_PER_EXPERT = 3 * 2 * 16 * 16 * 4
CASES = [
    {"name": "always", "rebalance": ALWAYS, "clip": 0.5},
    {"name": "accumulated", "rebalance": ALWAYS, "accumulate": 2, "dispatcher": "per_node"},
    {"name": "never", "rebalance": NEVER},
]
HALF = {"name": "half", "steps": 4, "length": 6, "clip": 0.5, "rebalance": ALWAYS}


def as_alone(case):
    return {key: value for key, value in case.items() if key not in ("rebalance", "dispatcher")}


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"), *map(as_alone, CASES))


@pytest.fixture(scope="module")
def together(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp("ranks2")
    run_ranks("migration_cases.py", 2, folder, [*CASES, HALF])
    return folder


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
class TestParity(Parity):
    """Ranks whose experts are rebalanced train as one process does."""


@pytest.mark.parametrize("name", ["always", "accumulated"])
def test_experts_move_where_that_pays_and_each_move_is_accounted_for(together, name):
    decisions, slots = read(together, f"{name}-decisions"), read(together, f"{name}-slots")
    assert [one["step"] for one in decisions] == [2, 4, 6]
    assert any(one["moved_slots"] for one in decisions)
    for one in decisions:
        assert one["moved_bytes"] == one["moved_slots"] * BYTES_PER_EXPERT
        assert (one["expected_saving"] > 0) == (one["moved_slots"] > 0)
        assert (one["migration_seconds"] > 0) == (one["moved_slots"] > 0)
        assert one["planning_seconds"] > 0
    steps_of = len(slots) // 6
    changed = [number for number in range(1, len(slots)) if slots[number] != slots[number - 1]]
    moved = [one["step"] * steps_of for one in decisions if one["moved_slots"] and one["step"] < 6]
    assert changed == moved


def test_experts_stay_where_it_does_not(together):
    assert [one["moved_slots"] for one in read(together, "never-decisions")] == [0, 0, 0]
    assert len({json.dumps(slots) for slots in read(together, "never-slots")}) == 1


def test_a_resumed_run_finds_experts_where_they_were(together, alone, tmp_path, run_ranks):
    rest = {"name": "rest", "clip": 0.5, "rebalance": ALWAYS, "resume": str(together / "half.ckpt")}
    run_ranks("migration_cases.py", 2, tmp_path, [rest])
    assert read(tmp_path, "rest-slots")[0] == read(together, "always-slots")[4]
    assert read(tmp_path, "rest-slots")[0] != read(together, "always-slots")[0]
    np.testing.assert_allclose(losses(tmp_path, "rest"), losses(alone, "always")[4:], rtol=2e-5)


def test_experts_of_one_process_cannot_move(fit):
    rebalancer = Rebalancer(Rebalancing(lpt, LastValue()))
    with pytest.raises(ValueError, match="ranks of an ExpertParallelStrategy, this run has a SingleDeviceStrategy"):
        fit([rebalancer], steps=1)


@pytest.mark.parametrize("options", [{"every": 0}, {"history": 0}, {"sample": 0}])
def test_numbers_must_make_sense(options):
    with pytest.raises(ValueError, match="need every, history and sample >= 1"):
        Rebalancer(Rebalancing(lpt, LastValue()), **options)
