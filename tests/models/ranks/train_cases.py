"""What the ranks of test_expert_parallel.py train: `python train_cases.py RANK STORE OUT NUM_RANKS PORT CASES...`.

A case is a JSON object of options of `train`; all cases run one after the other in one process.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

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


def strategy(world_size: int, placement: str, dispatcher: str, **options) -> ExpertParallelStrategy:
    nodes = 2 if world_size == 4 else 1
    topology = Topology(nodes, world_size // nodes, 1e9, 1e9, 1e-6, 1e-6)
    scattered = {
        1: [[3, 1, 0, 2]],
        2: [[3, 1, -1], [0, 2, -1]],
        4: [[3, -1], [1, -1], [0, -1], [2, -1]],
    }[world_size]
    replicas = {1: [[0, 1, 2, 3]], 2: [[0, 1, 2], [2, 3, 0]], 4: [[0, 1], [0, 2], [3, 1], [0, 3]]}[world_size]
    chosen = {"scattered": scattered, "replicas": replicas}
    where = Placement(np.array([chosen[placement]] * LAYERS)) if placement in chosen else contiguous
    return ExpertParallelStrategy(topology, where, DISPATCHERS[dispatcher], process_group_backend="gloo", **options)


def train(
    rank: int,
    world_size: int,
    out: Path,
    *,
    name: str,
    dispatcher: str = "per_device",
    placement: str = "contiguous",
    router: str = "topk",
    optimizer: str = "adamw",
    steps: int = 6,
    length: int | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    resume: str | None = None,
    save: str | None = None,
    seed_of_rank: int = 0,
    parallel: bool = True,
) -> None:
    """Train `steps` of `length` steps; losses, the whole model's weights and optimiser states go to OUT/NAME.*."""
    callbacks = [LoadRecorder(out / f"{name}-trace", TraceSource("m", "r", 0, SEQUENCES * LENGTH, 2, "-", "-"))]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy(world_size, placement, dispatcher, timeout_seconds=60) if parallel else "auto",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        callbacks=callbacks,
        default_root_dir=out,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = module(router, optimizer, seed_of_rank * rank)
    data = Data((length or steps) * accumulate)
    trainer.fit(model, data, ckpt_path=resume and str(out / resume), weights_only=True)
    trainer.save_checkpoint(out / (save or f"{name}.ckpt"))
    if rank == 0:
        (out / f"{name}.json").write_text(json.dumps(model.noted))


def main(rank: int, out: Path, world_size: int, port: str, cases: list[str]) -> None:
    if world_size > 1:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        os.environ.update(place)
    for case in cases:
        train(rank, world_size, out, **json.loads(case))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:])
