"""The README's single-run commands, at toy size and in the README's order."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from routers.base import Router

ROOT = Path(__file__).resolve().parents[2]
# a toy run has 240 steps: shorter horizons and windows than the README's nano16
TOY = {
    "load_states": ["detector.window=20", "windows=[5,20]", "sensitivity.windows=[20,40]"],
    "predict_loads": ["detector.window=20", "backtest.horizons=[20,50]"],
    "place_experts": ["detector.window=20", "policy.window=20", "replay.every=50"],
    "profile": ["profile.batches=4"],
    "evaluate": ["num_items=8"],
    "train_router": ["steps=4"],
    "route_volume": ["arm.steps=4"],
    "all_to_all": ["arm.steps=4", "exchange.batches=1", "exchange.width=64", "exchange.rounds=1"],
    "live_rebalance": ["live.blocks=1", "live.steps=2", "policy.window=20"],
    "compare_quality": ["trace.setting=micro8", "arm.steps=4"],
}
# entries that train are told the run, the others the trace of one
TRAINING = ("train", "train_router")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    told = [shlex.split(line)[2:] for line in lines if line.startswith("python -m benchmarks.")]
    # a cluster of namespaces needs root, and has tests of its own
    return [command for command in told if command[0] != "benchmarks.cluster"]


def test_example_router_routes() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    defined: dict[str, type[Router]] = {}
    exec(source, defined)
    router = defined["Contrary"](4, 8, 0, top_k=2)
    scores_TE = torch.rand(5, 8)
    assert torch.equal(router.select(scores_TE), scores_TE.argsort()[:, :2])


def write_megatron_dump(folder: Path) -> Path:
    """200 steps of 16 tokens, 2 of 8 experts each, as one rank writes them."""
    folder.mkdir()
    chosen_STK = np.random.default_rng(0).permuted(np.tile(np.arange(8), (200, 16, 1)), axis=-1)[..., :2]
    common = {"block": "decoder", "layer": 0, "rank": 0, "topk": 2}
    rows = [{**common, "step": step, "top_indices": chosen.tolist()} for step, chosen in enumerate(chosen_STK)]
    (folder / "router_trace_rank0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_single_run_commands_work(run_module: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    told = commands()
    assert len(told) == 15
    dump = write_megatron_dump(tmp_path / "router_traces")
    for name, *arguments in told:
        entry = name.split(".")[1]
        recorded = next(tmp_path.glob("smoke/train/*/trace"), Path())
        changes = {
            "results/train/traces/nano16": str(recorded),
            "nano16": "micro8",
            "scale=cpu": "scale=smoke",
            "router_traces": str(dump),
        }
        scale = "scale=cpu" if entry in TRAINING else "trace.scale=cpu"
        toy = arguments if scale in arguments else [scale, *arguments]
        for before, after in changes.items():
            toy = [argument.replace(before, after) for argument in toy]
        done = run_module(entry, *toy, *TOY.get(entry, []), f"outputs={tmp_path}", "logger=csv")
        assert done.returncode == 0, f"{name} {toy}: {done.stderr}"
    assert len(list(tmp_path.rglob("cell.json"))) == len(told)
