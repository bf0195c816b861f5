"""MegaBlocks' real Triton kernels: interpreted line by line on any machine, compiled on a CUDA device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.megablocks import is_installed, native_parts

pytestmark = pytest.mark.skipif(not is_installed(), reason="MegaBlocks is not installed: make megablocks")

ROOT = Path(__file__).parents[3]
# one autotuning candidate: choosing among several takes a device to time them on
INTERPRETED = """
import importlib, json, torch
from benchmarks.megablocks_parity import CHECKS, check_wide_indices
from models.megablocks import load
load()
kernels = importlib.import_module("megablocks.backend.kernels")
for kernel in (kernels._padded_copy, kernels._padded_copy_wgrad):
    kernel.configs = kernel.configs[:1]
cpu = torch.device("cpu")
errors = {check.name: check.error for checks in CHECKS.values() for check in checks(cpu)}
from models.megablocks.dropless import WideIndices
del WideIndices.topology
narrow = {check.name: check.error for check in check_wide_indices(cpu)}
print(json.dumps({"errors": errors, "narrow": narrow}))
"""


@pytest.mark.slow
def test_interpreted_kernels_equal_plain_references():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name.split(":")[0] for name in found["errors"]} >= {"kernels", "dMoE grouped", "dMoE sparse", "int16 fix"}
    assert max(found["errors"].values()) < 2e-6
    assert found["narrow"]["int16 fix: output"] > 0.1, "without the fix, indices of 16 bits overflow"


@pytest.mark.gpu
def test_every_part_agrees_on_the_device():
    from benchmarks.gpu_check import parity_rows

    rows = list(parity_rows(torch.device("cuda")))
    assert [row for row in rows if not row["passed"]] == []
    assert native_parts("sparse")["kernels"]
