"""Ranks whose experts move while they train, for test_migration.py: `python migration_cases.py FOLDER CASES...`.

A case is a JSON object of options of `train`, as in train_cases.py; experts move to `moves[step]` after that step.
"""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from train_cases import DISPATCHERS, LAYERS, asked, fit

import models.expert_parallel.sharded_experts
from models.callbacks.rebalancer import Rebalancer
from models.expert_parallel import ExpertParallelStrategy
from models.expert_parallel.fully_sharded import FullyShardedExpertParallelStrategy
from models.rebalancing import Rebalancing
from placement.lpt import lpt
from placement.topology import Placement, Topology
from predictors.windows import LastValue

# by the number of ranks: plans of as many slots each; "apart" gives each layer its own
PLANS = {
    2: {
        "start": [[[0, 1, -1], [2, 3, -1]]] * LAYERS,
        "crossed": [[[3, 2, -1], [1, 0, -1]]] * LAYERS,
        "apart": [[[0, 1, -1], [2, 3, -1]], [[1, -1, 2], [0, 3, -1]]],
        "replicas": [[[0, 1, 2], [2, 3, 0]]] * LAYERS,
        "others": [[[2, 1, 3], [3, 0, 1]]] * LAYERS,
        "narrow": [[[0, 1], [2, 3]]] * LAYERS,
    },
    4: {
        "start": [[[0, -1], [1, -1], [2, -1], [3, -1]]] * LAYERS,
        "crossed": [[[3, -1], [2, -1], [-1, 1], [0, -1]]] * LAYERS,
        "apart": [[[0, -1], [1, -1], [2, -1], [3, -1]], [[1, 0], [3, -1], [2, -1], [0, -1]]],
        "replicas": [[[0, 1], [0, 2], [3, 1], [0, 3]]] * LAYERS,
        "others": [[[2, 1], [0, 3], [2, -1], [1, 2]]] * LAYERS,
    },
}
KINDS = {"plain": ExpertParallelStrategy, "sharded": FullyShardedExpertParallelStrategy}


def plan(ranks: int, name: str) -> Placement:
    return Placement(np.array(PLANS[ranks][name]))


class Moves(L.Callback):
    """Moves experts after chosen steps, and notes the bytes that this says it sent."""

    def __init__(self, ranks: int, moves: dict[str, str], every: int) -> None:
        self.ranks, self.moves, self.every = ranks, moves, every
        self.bytes: list[list[int]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = str((batch_idx + 1) // self.every)
        if (batch_idx + 1) % self.every == 0 and step in self.moves:
            volume = trainer.strategy.migrate(plan(self.ranks, self.moves[step]))
            self.bytes.append(volume.bytes.sum((1, 2)).tolist())


class Watched(L.Callback):
    """Notes where experts live when a step starts."""

    def __init__(self) -> None:
        self.slots: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.slots.append(trainer.strategy.experts.placement.slots.tolist())


def policy(margin: float) -> Rebalancing:
    return Rebalancing(lpt, LastValue(), horizon=10, margin=margin, window=2)


def die_while_moving(victim: int, rank: int) -> None:
    """A rank is killed when half of a layer's tensors have moved."""
    move, moved = models.expert_parallel.sharded_experts.move_parameter, []

    def half_way(*arguments: Any) -> None:
        if rank == victim and len(moved) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(1)
        move(*arguments)

    models.expert_parallel.sharded_experts.move_parameter = half_way


def train(
    ranks: int,
    folder: Path,
    *,
    name: str,
    moves: dict[str, str] | None = None,
    start: str = "start",
    dispatcher: str = "per_device",
    kind: str = "plain",
    rebalance: dict[str, Any] | None = None,
    victim: int | None = None,
    of_rank_1: str | None = None,
    **case: Any,
) -> None:
    """As `fit`; the whole model goes to FOLDER/NAME.ckpt, and what was said to be sent to FOLDER/NAME-bytes.json."""
    nodes = 2 if ranks == 4 else 1
    topology = Topology(nodes, ranks // nodes, 1e9, 1e9, 1e-6, 1e-6)
    where, backend = plan(ranks, start), {"process_group_backend": "gloo"}
    parallel = KINDS[kind](topology, where, DISPATCHERS[dispatcher], 60.0, **backend)
    if of_rank_1 is not None and (os.environ["RANK"] == "1" or of_rank_1 == "narrow"):
        moves = dict.fromkeys(moves or {}, of_rank_1)
    mover = Moves(ranks, moves or {}, case.get("accumulate", 1))
    rebalancer = None if rebalance is None else Rebalancer(policy(**rebalance), every=2)
    watched = Watched()
    callbacks: list[L.Callback] = [*([rebalancer] if rebalancer else []), watched, mover]
    if victim is not None:
        die_while_moving(victim, int(os.environ["RANK"]))
        saved = ModelCheckpoint(
            folder / name, "{step}", monitor="step", mode="max", every_n_train_steps=2, save_top_k=1
        )
        callbacks, case["enable_checkpointing"] = [saved, mover], True
    together = fit(folder, ranks, parallel, name=name, also=callbacks, **case)
    together.save_checkpoint(folder / f"{name}.ckpt")
    if together.is_global_zero:
        (folder / f"{name}-bytes.json").write_text(json.dumps(mover.bytes))
        (folder / f"{name}-slots.json").write_text(json.dumps(watched.slots))
    if rebalancer and together.is_global_zero:
        told = [asdict(decision) for decision in rebalancer.decisions]
        (folder / f"{name}-decisions.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks, folder, cases = asked()
    for case in cases:
        train(ranks, folder, **case)
