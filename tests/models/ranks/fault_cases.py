"""Ranks of which one fails, for test_expert_parallel_faults.py: `python fault_cases.py FOLDER CASES...`.

A case is a JSON object of options of `train`; what it raised, with its notes, goes to FOLDER/raised-RANK.json.
"""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from train_cases import SOURCE, Data, asked, module, strategy, trainer

from models.callbacks.recorder import LoadRecorder


def fail() -> None:
    raise ArithmeticError("the loss is not a number")


def hang() -> None:
    while True:
        time.sleep(0.1)


FAULTS = {
    "kill": partial(os.kill, os.getpid(), signal.SIGKILL),
    "stop": partial(os.kill, os.getpid(), signal.SIGSTOP),
    "hang": hang,
    "fail": fail,
}


class Fault(L.Callback):
    """Makes this rank fail in its sixth step; with no fault it does nothing."""

    def __init__(self, fault: str | None) -> None:
        self.fault = fault

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.fault is not None and batch_idx == 5:
            FAULTS[self.fault]()


def callbacks(folder: Path, fault: str | None) -> list[L.Callback]:
    """A trace in chunks of two steps, and a checkpoint every four."""
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", "{step}", monitor="step", mode="max", every_n_train_steps=4, save_top_k=1
    )
    return [LoadRecorder(folder / "trace", SOURCE, chunk_steps=2), checkpoint, Fault(fault)]


def train(
    rank: int,
    ranks: int,
    folder: Path,
    *,
    victim: int,
    fault: str | None = None,
    timeout_seconds: float = 60.0,
    told: dict | None = None,
) -> None:
    """Train twelve steps; rank `victim` fails, or is told something else than the others."""
    is_victim = rank == victim
    options = {"ranks": ranks, "placement": "contiguous", "precision": "32-true", "dim": 16}
    options |= (told or {}) if is_victim else {}
    together = trainer(
        folder,
        options["ranks"],
        strategy(options["ranks"], options["placement"], "per_device", timeout_seconds=timeout_seconds),
        precision=options["precision"],
        callbacks=callbacks(folder, fault if is_victim else None),
        enable_checkpointing=True,
        max_steps=12,
    )
    model = module()
    model.build = partial(model.build, dim=options["dim"])
    together.fit(model, Data(12))


def main(rank: int, ranks: int, folder: Path, cases: list[dict]) -> None:
    raised = []
    for case in cases:
        try:
            train(rank, ranks, folder, **case)
        except Exception as error:
            told = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            raised.append(told)
            (folder / f"raised-{rank}.json").write_text(json.dumps(raised))
            if case is cases[-1]:
                raise


if __name__ == "__main__":
    main(int(os.environ["RANK"]), *asked())
