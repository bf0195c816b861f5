"""Shared by the tests of entry points."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from benchmarks.cell import fingerprint, identity
from benchmarks.record import Cell
from benchmarks.train import build_data, build_module
from models.language_model import LanguageModel
from traces.load import TraceSource
from traces.store import TraceWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m benchmarks.NAME ARGUMENTS` from the repository's root."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


@pytest.fixture(scope="session")
def keep_run() -> Callable[..., LanguageModel]:
    """Leave a folder as a finished run of a training configuration leaves it, with the weights it started from."""

    def keep(training: DictConfig, folder: Path, step: int = 240) -> LanguageModel:
        torch.manual_seed(0)
        module = build_module(training, build_data(training))
        module.configure_model()
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        (folder / "checkpoints").mkdir(parents=True)
        torch.save(checkpoint, folder / "checkpoints" / f"step={step}.ckpt")
        cell = Cell(fingerprint(training), "train", identity(training), "", {}, "", "", 0.0, "")
        (folder / "cell.json").write_text(json.dumps(asdict(cell)))
        return module

    return keep


@pytest.fixture
def trace_folder(tmp_path: Path) -> Path:
    """A recorded trace in which 8 experts of 2 layers relax towards a steady load: 400 steps of 4,096 tokens, top-2."""
    rng = np.random.default_rng(0)
    step = np.arange(400)
    target = rng.dirichlet(np.full(8, 20.0), size=2)
    start = rng.dirichlet(np.full(8, 2.0), size=2)
    mix = np.exp(-step / 30)[:, None, None]
    tokens = rng.multinomial(8192, mix * start + (1 - mix) * target)
    source = TraceSource("toy", "TopK", 0, 4096, 2, "none", "0")
    writer = TraceWriter(tmp_path / "trace", source, 2, 8)
    writer.write_loads(step, tokens)
    return tmp_path / "trace"
