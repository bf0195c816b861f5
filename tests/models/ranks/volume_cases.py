"""What the ranks of test_volume_recorder.py train: `python volume_cases.py FOLDER CASES...`.

A case is a dispatcher and a placement; rank 0 keeps what was counted at each step beside the recorded routing.
"""

from pathlib import Path

import lightning as L
import numpy as np
from train_cases import SOURCE, Data, asked, module, strategy, trainer

from models.callbacks.recorder import LoadRecorder
from models.callbacks.volume import VolumeRecorder, scalars

STEPS = 4


class Kept(L.Callback):
    """Keeps what a recorder counted, step by step, and what was logged last."""

    def __init__(self, recorder: VolumeRecorder) -> None:
        self.recorder, self.volumes = recorder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.volumes.append({kind: volume.bytes for kind, volume in self.recorder.latest.items()})


def train(ranks: int, folder: Path, *, dispatcher: str, placement: str) -> None:
    parallel = strategy(ranks, placement, dispatcher)
    counted = VolumeRecorder(parallel.topology, every=1)
    kept = Kept(counted)
    callbacks = [LoadRecorder(folder / dispatcher, SOURCE, routing_every=1), counted, kept]
    together = trainer(folder, ranks, parallel, max_steps=STEPS, callbacks=callbacks)
    together.fit(module(), Data(STEPS))
    if together.is_global_zero:
        logged = together.logged_metrics
        assert {key: float(logged[key]) for key in scalars(counted.latest)} == scalars(counted.latest)
        kinds = {kind: np.stack([volume[kind] for volume in kept.volumes]) for kind in counted.latest}
        np.savez(folder / f"{dispatcher}.npz", **kinds)


if __name__ == "__main__":
    ranks, folder, cases = asked()
    for case in cases:
        train(ranks, folder, **case)
