"""One, two and four gloo processes must train the same model, and open each other's checkpoints."""

import numpy as np
import pytest
from parity import Parity, check_optimiser_states, losses
from train_cases import train_alone

CASES = [
    {"name": "sgd", "optimizer": "sgd"},
    {"name": "adamw"},
    {"name": "sgd_clip", "optimizer": "sgd", "clip": 0.5},
    {"name": "accumulate_clip", "accumulate": 2, "clip": 0.5},
    {"name": "scattered", "optimizer": "sgd", "placement": "scattered", "dispatcher": "per_expert", "clip": 0.5},
    {"name": "replicas", "optimizer": "sgd", "placement": "replicas", "dispatcher": "per_node", "clip": 0.5},
    {"name": "replicas_adamw", "placement": "replicas", "accumulate": 2},
    {"name": "relu", "optimizer": "sgd", "router": "relu"},
    {"name": "variation", "optimizer": "sgd", "router": "variation"},
    {"name": "seeded_apart", "placement": "replicas", "seed_of_rank": 1},
]
HALF = {"steps": 3, "length": 6, "clip": 0.5, "placement": "replicas"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"), *CASES, {"name": "whole", "clip": 0.5})


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda ranks: f"{ranks}_ranks")
def together(request, tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    run_ranks("train_cases.py", request.param, folder, [*CASES, HALF | {"name": "half"}])
    return folder


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
class TestParity(Parity):
    """Ranks together train as one process does."""


def test_optimiser_states_are_those_of_one_process(together, alone):
    check_optimiser_states(together, alone, "replicas_adamw")


@pytest.mark.parametrize("together", [2], indirect=True, ids=["saved_by_2_ranks"])
def test_a_checkpoint_resumes_at_another_world_size(together, alone, tmp_path, run_ranks):
    # what follows is what one process does without a break
    resumed = {"name": "rest", "steps": 6, "clip": 0.5, "resume": str(together / "half.ckpt")}
    train_alone(tmp_path / "plain", resumed)
    run_ranks("train_cases.py", 2, tmp_path / "two", [resumed | {"placement": "scattered"}])
    run_ranks("train_cases.py", 4, tmp_path / "four", [resumed | {"placement": "replicas", "dispatcher": "per_node"}])
    for folder in ("plain", "two", "four"):
        np.testing.assert_allclose(losses(tmp_path / folder, "rest"), losses(alone, "whole")[3:], rtol=2e-5)
