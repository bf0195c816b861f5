"""Experts that move train as if they had always lived there, and a kill leaves nothing half moved."""

import json

import numpy as np
import pytest
from migration_cases import plan
from parity import Parity, check_optimiser_states, losses
from train_cases import train_alone

from benchmarks.cluster.ranks import RankFailed
from placement.movement import migration
from placement.topology import Topology

# bytes of an expert of 16 x 16 twice, and of what the optimiser keeps of it
SGD, ADAMW = 2 * 2 * 16 * 16 * 4, 3 * 2 * 16 * 16 * 4
CASES = [
    {"name": "sgd", "optimizer": "sgd", "moves": {"2": "crossed"}},
    {"name": "adamw", "moves": {"1": "apart", "4": "crossed"}, "clip": 0.5, "dispatcher": "per_expert"},
    {"name": "grown", "optimizer": "sgd", "moves": {"2": "replicas", "4": "others"}, "dispatcher": "per_node"},
    {"name": "dropped", "start": "replicas", "moves": {"2": "start"}, "accumulate": 2, "clip": 0.5},
    {"name": "sharded", "kind": "sharded", "moves": {"2": "others", "3": "crossed"}, "clip": 0.5},
    {"name": "nowhere", "moves": {"3": "start"}},
]
HALF = {"name": "half", "steps": 3, "length": 6, "clip": 0.5, "moves": {"2": "others"}}


def as_alone(case):
    """What one process without a strategy is told of a case."""
    return {key: value for key, value in case.items() if key not in ("moves", "start", "kind", "dispatcher", "victim")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"), *map(as_alone, CASES), {"name": "whole", "clip": 0.5})


@pytest.fixture(
    scope="module",
    params=[2, pytest.param(4, marks=pytest.mark.slow)],
    ids=lambda ranks: f"{ranks}_ranks",
)
def together(request, tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    run_ranks("migration_cases.py", request.param, folder, [*CASES, HALF])
    (folder / "ranks.json").write_text(str(request.param))
    return folder


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
class TestParity(Parity):
    """Ranks whose experts move train as one process does."""


@pytest.mark.parametrize("name", ["adamw", "dropped"])
def test_optimiser_states_moved_with_their_experts(together, alone, name):
    check_optimiser_states(together, alone, name)


@pytest.mark.parametrize(
    ("name", "ways", "slot"),
    [
        ("sgd", [("start", "crossed")], SGD),
        ("adamw", [("start", "apart"), ("apart", "crossed")], ADAMW),
        ("grown", [("start", "replicas"), ("replicas", "others")], SGD),
        ("nowhere", [("start", "start")], ADAMW),
    ],
)
def test_bytes_are_those_of_weights_and_states_that_moved(together, name, ways, slot):
    ranks = int((together / "ranks.json").read_text())
    nodes = 2 if ranks == 4 else 1
    topology = Topology(nodes, ranks // nodes, 1e9, 1e9, 1e-6, 1e-6)
    expected = [migration(plan(ranks, old), plan(ranks, new), topology, slot).bytes.sum((1, 2)) for old, new in ways]
    found = json.loads((together / f"{name}-bytes.json").read_text())
    np.testing.assert_array_equal(found, expected)
    assert (np.array(found).sum() == 0) == (name == "nowhere")


@pytest.mark.parametrize("together", [2], indirect=True, ids=["saved_by_2_ranks"])
def test_a_checkpoint_of_moved_experts_resumes_at_another_world_size(together, alone, tmp_path, run_ranks):
    resumed = {"name": "rest", "steps": 6, "clip": 0.5, "resume": str(together / "half.ckpt")}
    train_alone(tmp_path / "plain", resumed)
    run_ranks("migration_cases.py", 4, tmp_path / "four", [resumed | {"moves": {"5": "crossed"}}])
    for folder in ("plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / folder, "rest"), losses(alone, "whole")[3:], rtol=2e-5)


@pytest.mark.slow
def test_a_kill_while_experts_move_leaves_a_checkpoint_that_trains_on(alone, tmp_path, run_ranks):
    killed = {"name": "killed", "clip": 0.5, "moves": {"4": "crossed"}, "victim": 1}
    with pytest.raises(RankFailed):
        run_ranks("migration_cases.py", 2, tmp_path, [killed])
    (checkpoint,) = (tmp_path / "killed").iterdir()
    # Lightning saves after all other callbacks: experts were to move first
    assert checkpoint.name == "step=2.ckpt"
    rest = {"name": "rest", "clip": 0.5, "resume": str(checkpoint), "moves": {"4": "crossed"}}
    run_ranks("migration_cases.py", 2, tmp_path / "again", [rest])
    np.testing.assert_allclose(losses(tmp_path / "again", "rest"), losses(alone, "whole")[2:], rtol=2e-5)


@pytest.mark.slow
def test_a_plan_of_other_slots_or_of_one_rank_alone_is_refused(tmp_path, run_ranks):
    for moves, message in ((["start", "narrow"], "not \\(2, 2, 2, 4\\)"), (["start", "crossed"], "placement to move")):
        case = {"name": "refused", "moves": {"1": moves[0]}, "of_rank_1": moves[1]}
        with pytest.raises(RankFailed, match=message):
            run_ranks("migration_cases.py", 2, tmp_path / moves[1], [case])
