"""Look at the router without the noise of the data, and at the noise of the data without the router's drift."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from models.language_model import LanguageModel
from traces.load import TraceSource
from traces.store import TraceWriter


class ProbeRecorder(L.Callback):
    """Routes one fixed held-out batch every n steps: whatever changes in its loads is the router's drift.

    Args:
        folder: trace folder for the probe's loads, one recorded step a probe.
        source: what produces the trace; its tokens_per_step is the probe's.
        tokens: (B, S) the fixed batch.
        every: steps between probes.
    """

    def __init__(self, folder: Path, source: TraceSource, tokens: Tensor, every: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.folder, self.source, self.tokens, self.every = Path(folder), source, tokens, every
        self._writer: TraceWriter | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._writer = None
        if trainer.is_global_zero:
            self._writer = _writer(self.folder, self.source, pl_module)
            self._writer.rewind(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = batch_idx // trainer.accumulate_grad_batches
        last_of_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last_of_step and step % self.every == 0:
            # all ranks route the batch, as their experts may be needed; the loads are the same on each
            loads = route(pl_module, [self.tokens])
            if self._writer:
                self._writer.write_loads(np.asarray([step]), loads)


class NoiseRecorder(L.Callback):
    """Routes many fresh training batches through fixed weights: the data's own step-to-step noise.

    Writes one trace folder a measured step, `noise-STEP/`, whose "steps" are the repeated batches 0..R-1.

    Args:
        folder: parent of the trace folders.
        source: what produces the trace.
        batches: R * A micro-batches (B, S) of the training distribution.
        accumulate: A micro-batches make up a training step, so that a repeated batch has a step's size.
        steps: after which steps to measure.
    """

    def __init__(
        self, folder: Path, source: TraceSource, batches: list[Tensor], accumulate: int, steps: Iterable[int]
    ) -> None:
        self.folder, self.source, self.batches = Path(folder), source, batches
        self.accumulate, self.steps = accumulate, frozenset(steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = batch_idx // trainer.accumulate_grad_batches
        last_of_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last_of_step and step in self.steps:
            # all ranks, as above
            loads_RALE = route(pl_module, self.batches)
            loads_RLE = loads_RALE.reshape(-1, self.accumulate, *loads_RALE.shape[1:]).sum(1)
            if trainer.is_global_zero:
                writer = _writer(self.folder / f"noise-{step:08d}", self.source, pl_module)
                # a run resumed from before this step measures again
                writer.rewind(0)
                writer.write_loads(np.arange(len(loads_RLE)), loads_RLE)


def route(module: L.LightningModule, batches: list[Tensor]) -> np.ndarray:
    """Loads (R, L, E) of R batches under the module's present weights; leaves no trace in the module."""
    with torch.no_grad(), unobserved(module):
        loads = [torch.stack([layer.load for layer in module(tokens.to(module.device)).moe]) for tokens in batches]
    return torch.stack(loads).cpu().numpy()


@contextmanager
def unobserved(module: L.LightningModule) -> Iterator[None]:
    """Evaluation mode, and routers' random states as they were afterwards: observing must not change training."""
    stateful = [m for m in module.modules() if type(m).get_extra_state is not torch.nn.Module.get_extra_state]
    states = [m.get_extra_state() for m in stateful]
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, was_training in modes:
            submodule.training = was_training
        for submodule, state in zip(stateful, states, strict=True):
            submodule.set_extra_state(state)


def _writer(folder: Path, source: TraceSource, module: L.LightningModule) -> TraceWriter:
    assert isinstance(module, LanguageModel)
    return TraceWriter(folder, source, module.decoder.num_moe_layers, module.decoder.num_experts)
