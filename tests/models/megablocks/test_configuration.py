"""The configurations that name MegaBlocks build, or say how to get it."""

import pytest
import torch

from benchmarks.cell import compose, user_errors
from benchmarks.train import build_data, build_module
from models.language_model import LanguageModel
from models.megablocks import StockDMoE, is_installed, native

CHOICES = ["model=dmoe_megablocks", "experts=megablocks"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Keeps the shipped text's tokens."""
    return tmp_path_factory.mktemp("outputs")


def build(outputs, choice: str) -> LanguageModel:
    config = compose("train", [choice, "data.root=data/text", f"outputs={outputs}"])
    module = build_module(config, build_data(config))
    module.configure_model()
    return module


@pytest.mark.skipif(not is_installed(), reason="MegaBlocks is not installed: make megablocks")
@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins are for machines without CUDA")
@pytest.mark.parametrize("choice", CHOICES)
def test_builds_and_computes(choice, outputs):
    module = build(outputs, choice)
    output = module(torch.zeros(1, 8, dtype=torch.long))
    assert output.logits.isfinite().all()
    assert len(output.moe) == len(module.decoder.routers) == 4
    stock = [isinstance(block.mlp, StockDMoE) for block in module.decoder.blocks]
    assert all(stock) if choice == CHOICES[0] else not any(stock)


@pytest.mark.parametrize("choice", CHOICES)
def test_without_megablocks_one_line_names_the_command(choice, outputs, monkeypatch):
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    sentence = r"^error: MegaBlocks is not installed; `make megablocks` installs it$"
    with pytest.raises(SystemExit, match=sentence), user_errors():
        build(outputs, choice)
