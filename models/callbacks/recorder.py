"""Record every expert's load at every step, and the full routing of a sample of steps."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from models.callbacks.ranks import on_first_rank
from models.language_model import LanguageModel
from traces.load import TraceSource
from traces.store import TraceWriter


class LoadRecorder(L.Callback):
    """Writes a trace folder while a model trains.

    Counts stay on their device and are summed over ranks once a chunk, so a step pays for a reference. A chunk is
    written before every checkpoint: a resumed run finds all that came before it, and records the rest again.

    Args:
        folder: trace folder, see traces/store.py.
        source: what produces the trace.
        chunk_steps: steps between writes: what a killed run can lose.
        routing_every: sample the routing of every rank's first micro-batch every n steps; 0 = never. A token's
            source_device is its rank.
    """

    def __init__(self, folder: Path, source: TraceSource, chunk_steps: int = 200, routing_every: int = 0) -> None:
        if chunk_steps < 1 or routing_every < 0:
            raise ValueError(f"need chunk_steps >= 1 and routing_every >= 0, got {chunk_steps} and {routing_every}")
        self.folder, self.source = Path(folder), source
        self.chunk_steps, self.routing_every = chunk_steps, routing_every
        self._steps: list[int] = []
        self._loads: list[Tensor] = []
        self._writer: TraceWriter | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self._steps, self._loads = [], []
        if trainer.is_global_zero:
            decoder = pl_module.decoder
            self._writer = TraceWriter(self.folder, self.source, decoder.num_moe_layers, decoder.num_experts)
            self._writer.rewind(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = batch_idx // trainer.accumulate_grad_batches
        if self._steps and self._steps[-1] == step:
            self._loads[-1] = self._loads[-1] + outputs["loads"]
            return
        if len(self._steps) >= self.chunk_steps:
            self.flush()
        self._steps.append(step)
        self._loads.append(outputs["loads"])
        if self.routing_every and step % self.routing_every == 0:
            self._sample(step, torch.stack(outputs["expert_indices"]))

    def _sample(self, step: int, chosen_LTK: Int[Tensor, "L T K"]) -> None:
        parts = on_first_rank(chosen_LTK)
        if self._writer and parts:
            rank_T = np.repeat(np.arange(len(parts), dtype=np.int16), chosen_LTK.shape[1])
            self._writer.write_routing(step, torch.cat(parts, 1).cpu().numpy(), rank_T)

    def flush(self, before: int | None = None) -> None:
        """Write the held steps (those before a step), summed over ranks. Every rank must call it at the same step."""
        count = sum(before is None or step < before for step in self._steps)
        if not count:
            return
        loads_SLE = torch.stack(self._loads[:count])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loads_SLE)
        if self._writer:
            self._writer.write_loads(np.asarray(self._steps[:count]), loads_SLE.cpu().numpy())
        self._steps, self._loads = self._steps[count:], self._loads[count:]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # one written between two micro-batches leaves the step that is still being counted
        self.flush(before=trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.flush()
