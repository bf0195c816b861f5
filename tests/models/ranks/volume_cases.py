"""What the ranks of test_volume_recorder.py train: `python volume_cases.py RANK STORE OUT NUM_RANKS PORT`.

Every dispatcher trains one case; rank 0 keeps what was counted at each step beside the recorded routing.
"""

import os
import sys
from pathlib import Path

import lightning as L
import numpy as np
from train_cases import DISPATCHERS, LENGTH, SEQUENCES, Data, module, strategy

from models.callbacks.recorder import LoadRecorder
from models.callbacks.volume import VolumeRecorder, scalars
from traces.load import TraceSource

STEPS = 4
PLACEMENTS = {"per_expert": "scattered", "per_device": "replicas", "per_node": "replicas"}


class Kept(L.Callback):
    """Keeps what a recorder counted, step by step, and what was logged last."""

    def __init__(self, recorder: VolumeRecorder) -> None:
        self.recorder, self.volumes = recorder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.volumes.append({kind: volume.bytes for kind, volume in self.recorder.latest.items()})


def train(rank: int, world_size: int, out: Path, dispatcher: str) -> None:
    source = TraceSource("m", "r", 0, SEQUENCES * LENGTH, 2, "-", "-")
    parallel = strategy(world_size, PLACEMENTS[dispatcher], dispatcher, timeout_seconds=60)
    counted = VolumeRecorder(parallel.topology, every=1)
    kept = Kept(counted)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=parallel,
        max_steps=STEPS,
        callbacks=[LoadRecorder(out / dispatcher, source, routing_every=1), counted, kept],
        default_root_dir=out,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module(), Data(STEPS))
    if rank == 0:
        logged = trainer.logged_metrics
        assert {key: float(logged[key]) for key in scalars(counted.latest)} == scalars(counted.latest)
        kinds = {kind: np.stack([volume[kind] for volume in kept.volumes]) for kind in counted.latest}
        np.savez(out / f"{dispatcher}.npz", **kinds)


def main(rank: int, out: Path, world_size: int, port: str) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ.update(place)
    for dispatcher in DISPATCHERS:
        train(rank, world_size, out, dispatcher)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
