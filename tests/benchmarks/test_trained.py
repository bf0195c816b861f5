"""Models read back from the folder of their run, whatever their router was given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from benchmarks.cell import compose, fingerprint
from benchmarks.train import build_data, build_module
from benchmarks.trained import read_module, run_config, run_folder, with_trained, write_given

OF_RUN = ["trace.setting=micro8", "trace.scale=smoke"]


def training(*overrides: str, outputs: Path) -> DictConfig:
    return compose("train", ["setting=micro8", "scale=smoke", f"outputs={outputs}", *overrides])


def analysis(folder: Path | str, outputs: Path) -> DictConfig:
    return compose("evaluate", [*OF_RUN, f"trace.run={folder}", f"outputs={outputs}"])


def test_a_run_is_read_by_its_folder_alone(keep_run, tmp_path: Path):
    config = training("router=sigmoid", "seed=3", outputs=tmp_path)
    kept = keep_run(config, tmp_path / "run")
    found = with_trained(analysis(tmp_path / "run", tmp_path))
    assert (found.setting, found.seed, found.scale) == ("micro8", 3, "smoke")
    assert found.training_run == fingerprint(config)
    module, data = read_module(run_config(tmp_path / "run", str(tmp_path)), tmp_path / "run")
    assert type(module.decoder.routers[0]) is type(kept.decoder.routers[0])
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in module.state_dict().items())
    assert data.seed == 3


@pytest.mark.parametrize("folder", ["/nowhere", "null"])
def test_a_missing_run_says_how_to_train_it(folder: str, tmp_path: Path):
    said = r"no finished run .* run `python -m benchmarks.train setting=micro8 seed=0 scale=smoke`; .* trace.run=FOLDER"
    with pytest.raises(ValueError, match=said):
        run_folder(analysis(folder, tmp_path))


def test_what_a_router_was_given_is_given_again(tmp_path: Path):
    config = training("router=device_limited", "router.max_devices=1", outputs=tmp_path)
    devices = np.random.default_rng(0).permutation(np.arange(16).reshape(2, 8) % 4, axis=1)
    module = build_module(config, build_data(config), device_of_expert=devices)
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "step=1.ckpt")
    write_given(tmp_path, {"device_of_expert": devices})
    again, _ = read_module(config, tmp_path)
    for layer, router in enumerate(again.decoder.routers):
        assert router.device_of_expert.tolist() == devices[layer].tolist()
    tokens = torch.arange(32)[None]
    assert torch.equal(module(tokens).logits, again(tokens).logits)


def test_a_checkpoint_of_another_vocabulary_is_refused(keep_run, tmp_path: Path):
    config = training(outputs=tmp_path)
    module = keep_run(config, tmp_path / "run")
    shape = module.decoder.shape | {"vocab_size": 8192}
    torch.save({"state_dict": {}, "shape": shape}, tmp_path / "run" / "checkpoints" / "step=999.ckpt")
    with pytest.raises(ValueError, match=r"it has vocab_size = 8192 \(here 2048\)"):
        read_module(config, tmp_path / "run")
