"""What trainings left in two folders must be equal: ranks together, and one process alone."""

import json
from pathlib import Path

import numpy as np
import torch

from traces.store import read_loads


def losses(folder: Path, name: str) -> np.ndarray:
    return np.array(json.loads((folder / f"{name}.json").read_text()))


def checkpoint(folder: Path, name: str) -> dict:
    return torch.load(folder / f"{name}.ckpt", weights_only=True)


def check_optimiser_states(together: Path, alone: Path, name: str) -> None:
    expected, found = (checkpoint(folder, name)["optimizer_states"][0]["state"] for folder in (alone, together))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


class Parity:
    """Of every case that both trained, by `name`; `together` and `alone` are fixtures of the subclass's module."""

    def test_every_loss_equals_one_process(self, together, alone, name):
        np.testing.assert_allclose(losses(together, name), losses(alone, name), rtol=2e-5)

    def test_trained_weights_equal_one_process(self, together, alone, name):
        expected, found = (checkpoint(folder, name)["state_dict"] for folder in (alone, together))
        np.testing.assert_equal(list(found), list(expected))
        # the true gradient of the keys' bias is 0: AdamW makes whole steps of what rounding leaves of it
        for key in (key for key in expected if not key.endswith("qkv.bias")):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)

    def test_recorded_loads_equal_one_process(self, together, alone, name):
        expected, found = (read_loads(folder / f"{name}-trace").tokens for folder in (alone, together))
        np.testing.assert_array_equal(found, expected)
