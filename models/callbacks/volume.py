"""Log what dispatch sends over which links, as the dispatchers themselves count it."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.callbacks.ranks import on_first_rank
from models.moe import MoELayer
from placement.topology import Topology
from placement.volume import CommVolume

LINKS = ("local", "intra_node", "inter_node")


class VolumeRecorder(L.Callback):
    """Logs `volume/KIND/LINK/layer_N` of every n-th step: all its micro-batches' dispatch, from all ranks.

    KIND is rows, bytes (of these rows) or metadata_bytes (sent beside them), LINK local, intra_node or inter_node.
    Combine sends the rows back, and backward passes send both once more.

    Args:
        topology: of the run, one rank a device.
        every: steps between logs.

    Attributes:
        latest: on rank 0, the last logged step by kind: volumes with batch axis (L,), exact; "rows" counts rows.
    """

    def __init__(self, topology: Topology, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.topology, self.every = topology, every
        self.latest: dict[str, CommVolume] = {}
        self._parts: list[Tensor] = []
        self._row_bytes = 0
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._parts = []
        layer = next(module for module in pl_module.modules() if isinstance(module, MoELayer))
        self._hook = layer.experts.register_forward_pre_hook(self._measure_row)

    def _measure_row(self, experts: nn.Module, inputs: tuple[Any, ...]) -> None:
        # the precision in which rows travel is autocast's choice
        self._row_bytes = inputs[0].shape[1] * inputs[0].element_size()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = batch_idx // trainer.accumulate_grad_batches
        if (step + 1) % self.every:
            return
        self._parts.append(torch.stack([outputs["rows_sent"], outputs["metadata_bytes_sent"]]))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        from_ranks = on_first_rank(torch.stack(self._parts).sum(0))
        self._parts = []
        if from_ranks is not None:
            self.latest = self._volumes(torch.stack(from_ranks, 2))
            pl_module.log_dict(scalars(self.latest), rank_zero_only=True)

    def _volumes(self, sent: Int[Tensor, "2 L G G"]) -> dict[str, CommVolume]:
        rows_LGG, metadata_LGG = sent.cpu().numpy()
        counted = {"rows": rows_LGG, "bytes": rows_LGG * self._row_bytes, "metadata_bytes": metadata_LGG}
        return {kind: CommVolume(sent_LGG, self.topology) for kind, sent_LGG in counted.items()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._hook:
            self._hook.remove()


def scalars(volumes: Mapping[str, CommVolume]) -> dict[str, float]:
    """Totals by kind, link and layer, under the names that are logged."""
    return {
        f"volume/{kind}/{link}/layer_{layer}": float(total)
        for kind, volume in volumes.items()
        for link in LINKS
        for layer, total in enumerate(getattr(volume, link))
    }
