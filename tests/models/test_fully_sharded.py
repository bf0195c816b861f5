"""Two gloo processes that shard dense weights too must train the model of one process, and write its checkpoints."""

import json
import socket
from pathlib import Path

import launch
import lightning as L
import numpy as np
import pytest
import torch
import train_cases

RANKS = Path(__file__).parent / "ranks"


CASES = {
    "sgd_clip": {"optimizer": "sgd", "clip": 0.5},
    "adamw": {"placement": "scattered", "accumulate": 2, "clip": 0.5},
    "kept": {"optimizer": "sgd", "clip": 0.5, "reshard": False, "dispatcher": "per_expert"},
    "seeded_apart": {"placement": "replicas", "dispatcher": "per_node", "seed_of_rank": 1},
}
HALF = {"length": 6, "clip": 0.5, "placement": "replicas"}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """This process without the strategy."""
    folder = tmp_path_factory.mktemp("alone")
    whole = {"clip": 0.5}
    for name, case in (CASES | {"whole": whole}).items():
        options = {key: value for key, value in case.items() if key not in ("reshard", "seed_of_rank")}
        train_cases.train(0, 1, folder, name=name, parallel=False, **options)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two ranks train all cases, go on from a checkpoint of theirs, and load one for validation alone."""
    folder = tmp_path_factory.mktemp("together")
    cases = [case | {"name": name} for name, case in CASES.items()]
    cases.append(HALF | {"name": "half", "steps": 3})
    cases.append(HALF | {"name": "rest", "steps": 6, "resume": str(folder / "half.ckpt"), "placement": "scattered"})
    cases.append({"name": "loaded", "checkpoint": "adamw.ckpt"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch.run_ranks(RANKS / "sharded_cases.py", 2, folder, "2", port, *map(json.dumps, cases))
    return folder


def losses(folder, name):
    return np.array(json.loads((folder / f"{name}.json").read_text()))


def checkpoint(folder, name):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("name", list(CASES))
class TestParity:
    def test_every_loss_equals_one_process(self, alone, together, name):
        np.testing.assert_allclose(losses(together, name), losses(alone, name), rtol=2e-5)

    def test_checkpoints_hold_the_weights_of_one_process(self, alone, together, name):
        expected, found = checkpoint(alone, name)["state_dict"], checkpoint(together, name)["state_dict"]
        assert list(found) == list(expected)
        # the true gradient of the keys' bias is 0: AdamW makes whole steps of what rounding leaves of it
        for key in (key for key in expected if not key.endswith("qkv.bias")):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)


def test_optimiser_states_are_those_of_one_process(alone, together):
    expected = checkpoint(alone, "adamw")["optimizer_states"][0]["state"]
    found = checkpoint(together, "adamw")["optimizer_states"][0]["state"]
    assert found.keys() == expected.keys()
    for number, entries in expected.items():
        for key, value in entries.items():
            torch.testing.assert_close(found[number][key], value, rtol=1e-2, atol=1e-5)


def test_two_ranks_go_on_from_their_checkpoint(alone, together):
    np.testing.assert_allclose(losses(together, "rest"), losses(alone, "whole")[3:], rtol=2e-5)


def test_one_process_goes_on_from_it(alone, together):
    train_cases.train(0, 1, alone, name="rest", steps=6, clip=0.5, resume=str(together / "half.ckpt"), parallel=False)
    np.testing.assert_allclose(losses(alone, "rest"), losses(alone, "whole")[3:], rtol=2e-5)


def test_validation_alone_reads_the_checkpoint(alone, together):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    data = train_cases.Data(6)
    data.trainer = trainer
    model = train_cases.module(seed=7)
    found = trainer.validate(model, data.train_dataloader(), together / "adamw.ckpt", weights_only=True, verbose=False)
    np.testing.assert_allclose(losses(together, "loaded"), found[0]["held_out/all"], rtol=2e-5)
    for key, value in checkpoint(together, "loaded")["state_dict"].items():
        torch.testing.assert_close(value, checkpoint(together, "adamw")["state_dict"][key], rtol=0, atol=0)
