"""Ranks that train a tiny model: `python train_cases.py FOLDER CASES...`, started once a rank.

A case is a JSON object of options of `train`; all cases run one after the other in one process. What the other programs
of this folder train is built here too.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from models.callbacks.recorder import LoadRecorder
from models.data import StreamLoader
from models.dispatch import LocalDispatcher, PerDeviceDispatcher, PerExpertDispatcher, PerNodeDispatcher
from models.expert_parallel import ExpertParallelStrategy
from models.experts import LoopExperts
from models.language_model import LanguageModel
from models.stream import Blocks, TokenStream
from models.transformer import Transformer
from placement.contiguous import contiguous
from placement.topology import Placement, Topology
from routers.losses import squared_variation
from routers.noisy_topk import importance
from routers.relu import Relu
from routers.step_sum import total_over_ranks
from routers.topk import TopK
from traces.load import TraceSource


class Variation(TopK):
    """Noisy top-k's loss without its noise: no mean of the ranks' own losses."""

    def balance(self, logits, routing, num_sequences):
        return squared_variation(total_over_ranks(importance(routing)))


DISPATCHERS = {"per_expert": PerExpertDispatcher, "per_device": PerDeviceDispatcher, "per_node": PerNodeDispatcher}
ROUTERS = {
    "topk": partial(TopK, top_k=2, balance_weight=0.05, z_weight=0.01),
    "relu": partial(Relu, top_k=2, penalty=0.01),
    "variation": partial(Variation, top_k=2, balance_weight=0.05),
}
EXPERTS, LAYERS, SEQUENCES, LENGTH = 4, 2, 8, 8
SOURCE = TraceSource("m", "r", 0, SEQUENCES * LENGTH, 2, "-", "-")
# by the number of ranks
SLOTS = {
    "scattered": {1: [[3, 1, 0, 2]], 2: [[3, 1, -1], [0, 2, -1]], 4: [[3, -1], [1, -1], [0, -1], [2, -1]]},
    "replicas": {1: [[0, 1, 2, 3]], 2: [[0, 1, 2], [2, 3, 0]], 4: [[0, 1], [0, 2], [3, 1], [0, 3]]},
}


class Module(LanguageModel):
    """A tiny model whose optimiser and seed can be chosen, and that notes every micro-batch's loss."""

    def __init__(self, router: str, optimizer: str, seed: int, **arguments) -> None:
        super().__init__(**arguments)
        self.router_name, self.optimizer_name, self.seed = router, optimizer, seed
        self.noted: list[float] = []

    def configure_model(self) -> None:
        if self.transformer is None:
            torch.manual_seed(self.seed)
            super().configure_model()

    def training_step(self, batch, batch_idx):
        told = super().training_step(batch, batch_idx)
        loss = told["loss"].detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.noted.append(loss.item())
        return told

    def configure_optimizers(self):
        if self.optimizer_name == "adamw":
            return super().configure_optimizers()
        return torch.optim.SGD(self.parameters(), 0.5, momentum=0.9)


def module(router: str = "topk", optimizer: str = "adamw", seed: int = 0) -> Module:
    transformer = partial(
        Transformer,
        vocab_size=32,
        sequence_length=LENGTH,
        dim=16,
        num_layers=LAYERS,
        num_heads=2,
        num_experts=EXPERTS,
        expert_dim=16,
        router=ROUTERS[router],
        experts=partial(LoopExperts),
        dispatcher=LocalDispatcher(),
        moe_every=1,
        init_std=0.3,
    )
    schedule = {"learning_rate": 0.02, "final_learning_rate": 0.002, "warmup_steps": 2, "total_steps": 12}
    return Module(router, optimizer, seed, transformer=transformer, **schedule)


class Data(L.LightningDataModule):
    def __init__(self, num_batches: int) -> None:
        super().__init__()
        self.num_batches = num_batches

    def train_dataloader(self) -> StreamLoader:
        tokens = np.random.default_rng(0).integers(0, 32, 600).astype(np.uint16)
        stream = TokenStream(Blocks({"text": tokens}, LENGTH), SEQUENCES, seed=0)
        return StreamLoader(stream, self.num_batches, {"stream": 0}, self.trainer.global_rank, self.trainer.world_size)


def strategy(
    ranks: int,
    placement: str,
    dispatcher: str,
    kind: type[ExpertParallelStrategy] = ExpertParallelStrategy,
    timeout_seconds: float = 60.0,
    **options: Any,
) -> ExpertParallelStrategy:
    nodes = 2 if ranks == 4 else 1
    topology = Topology(nodes, ranks // nodes, 1e9, 1e9, 1e-6, 1e-6)
    where = Placement(np.array([SLOTS[placement][ranks]] * LAYERS)) if placement in SLOTS else contiguous
    return kind(topology, where, DISPATCHERS[dispatcher], timeout_seconds, process_group_backend="gloo", **options)


def trainer(folder: Path, ranks: int, parallel: ExpertParallelStrategy | None, **options: Any) -> L.Trainer:
    """On the CPU, without a word, and without a sampler: the data give every rank its own."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    chosen: dict[str, Any] = dict.fromkeys(off, False) | options
    return L.Trainer(accelerator="cpu", devices=ranks, strategy=parallel or "auto", default_root_dir=folder, **chosen)


def fit(
    folder: Path,
    ranks: int,
    parallel: ExpertParallelStrategy | None,
    data: type[Data] = Data,
    *,
    name: str,
    router: str = "topk",
    optimizer: str = "adamw",
    steps: int = 6,
    length: int | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    resume: str | None = None,
    seed_of_rank: int = 0,
    also: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """Train `steps` of `length` steps, with callbacks `also`.

    Losses go to FOLDER/NAME.json, recorded loads to FOLDER/NAME-trace.
    """
    together = trainer(
        folder,
        ranks,
        parallel,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        callbacks=[LoadRecorder(folder / f"{name}-trace", SOURCE), *also],
        **options,
    )
    model = module(router, optimizer, seed_of_rank * together.global_rank)
    together.fit(model, data((length or steps) * accumulate), ckpt_path=resume, weights_only=True)
    if together.is_global_zero:
        (folder / f"{name}.json").write_text(json.dumps(model.noted))
    return together


def train(
    ranks: int, folder: Path, *, name: str, placement: str = "contiguous", dispatcher: str = "per_device", **case: Any
) -> None:
    """As `fit`; the whole model's weights and optimiser states go to FOLDER/NAME.ckpt."""
    parallel = strategy(ranks, placement, dispatcher)
    fit(folder, ranks, parallel, name=name, **case).save_checkpoint(folder / f"{name}.ckpt")


def train_alone(folder: Path, *cases: dict[str, Any]) -> Path:
    """As `train`, in this process and without a strategy, so regardless of what cases tell one; returns the folder."""
    for case in cases:
        told = {key: value for key, value in case.items() if key not in ("placement", "dispatcher", "reshard")}
        fit(folder, 1, None, **told).save_checkpoint(folder / f"{case['name']}.ckpt")
    return folder


def asked() -> tuple[int, Path, list[dict[str, Any]]]:
    """How many ranks there are, the folder and the cases: taken before the first, for Lightning unsets WORLD_SIZE."""
    return int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]), [json.loads(case) for case in sys.argv[2:]]


if __name__ == "__main__":
    ranks, folder, cases = asked()
    for case in cases:
        train(ranks, folder, **case)
