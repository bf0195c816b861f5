"""Two gloo processes that shard dense weights too must train the model of one process, and write its checkpoints."""

import numpy as np
import pytest
import torch
from parity import Parity, check_optimiser_states, checkpoint, losses
from train_cases import Data, module, train_alone, trainer

CASES = [
    {"name": "sgd_clip", "optimizer": "sgd", "clip": 0.5},
    {"name": "adamw", "placement": "scattered", "accumulate": 2, "clip": 0.5},
    {"name": "kept", "optimizer": "sgd", "clip": 0.5, "reshard": False, "dispatcher": "per_expert"},
    {"name": "seeded_apart", "placement": "replicas", "dispatcher": "per_node", "seed_of_rank": 1},
]
HALF = {"length": 6, "clip": 0.5, "placement": "replicas"}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"), *CASES, {"name": "whole", "clip": 0.5})


@pytest.fixture(scope="module")
def together(tmp_path_factory, run_ranks):
    """Two ranks train all cases, go on from a checkpoint of theirs, and load one for validation alone."""
    folder = tmp_path_factory.mktemp("together")
    half = HALF | {"name": "half", "steps": 3}
    rest = HALF | {"name": "rest", "steps": 6, "resume": str(folder / "half.ckpt"), "placement": "scattered"}
    run_ranks("sharded_cases.py", 2, folder, [*CASES, half, rest, {"name": "loaded", "checkpoint": "adamw.ckpt"}])
    return folder


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
class TestParity(Parity):
    """Ranks together train as one process does."""


def test_optimiser_states_are_those_of_one_process(together, alone):
    check_optimiser_states(together, alone, "adamw")


def test_two_ranks_go_on_from_their_checkpoint(together, alone):
    np.testing.assert_allclose(losses(together, "rest"), losses(alone, "whole")[3:], rtol=2e-5)


def test_one_process_goes_on_from_it(together, alone):
    train_alone(alone, {"name": "rest", "steps": 6, "clip": 0.5, "resume": str(together / "half.ckpt")})
    np.testing.assert_allclose(losses(alone, "rest"), losses(alone, "whole")[3:], rtol=2e-5)


def test_validation_alone_reads_the_checkpoint(together, tmp_path):
    plain, data, model = trainer(tmp_path, 1, None), Data(6), module(seed=7)
    data.trainer = plain
    found = plain.validate(model, data.train_dataloader(), together / "adamw.ckpt", weights_only=True, verbose=False)
    np.testing.assert_allclose(losses(together, "loaded"), found[0]["held_out/all"], rtol=2e-5)
    for key, value in checkpoint(together, "loaded")["state_dict"].items():
        torch.testing.assert_close(value, checkpoint(together, "adamw")["state_dict"][key], rtol=0, atol=0)
