"""One rank of a measurement of whole steps: python -m benchmarks.step_rank FOLDER BACKEND, started by run_ranks.

A step is what `benchmarks.train` does in one: forward, backward, clipping, optimiser, under the same strategy.
Lightning sets all up, then one call of `training_step` is the whole measurement, as its own loop knows no turns.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import models.dispatch
from benchmarks.exchange_job import DISPATCHERS
from benchmarks.step_job import StepJob, read_job
from benchmarks.train import prepare_process
from benchmarks.trained import read_module, run_config
from models.callbacks.ranks import on_first_rank
from models.callbacks.step_timer import PARTS, StepTimer, clock_of
from models.data import Batch, TextDataModule
from models.expert_parallel import ExpertParallelStrategy
from models.language_model import LanguageModel
from models.moe import MoELayer
from placement.topology import Placement
from traces.atomic import write_atomically


class InTurns(ExpertParallelStrategy):
    """Several models in one process, each data-parallel by itself: a step reduces no other model's gradients."""

    replicas: list[DistributedDataParallel]

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert isinstance(module, Steps)
        self.replicas = [self._replica(number, model) for number, model in enumerate(module.models)]

    def _replica(self, number: int, model: nn.Module) -> DistributedDataParallel:
        prefix = f"models.{number}."
        sharded = [name.removeprefix(prefix) for name in self._shards if name.startswith(prefix)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)
        return DDPStrategy._setup_model(self, model)

    def told(self, number: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a model's own training step returns, called through its replica."""
        replica = self.replicas[number]
        return self._forward_redirection(replica, replica.module, "training_step", batch, 0)  # pyright: ignore[reportReturnType]


class Steps(L.LightningModule):
    """Trains the variants of a job in turns.

    Args:
        job: all variants.
        trained: the models, in the order of the job's runs.
        batches: whole ones, for all steps of a round; all variants of a round train on the same ones.
        clip: norm of all gradients; None = no clipping.

    Attributes:
        measured: by variant and block: seconds a step of each part.
    """

    def __init__(self, job: StepJob, trained: list[LanguageModel], batches: list[Batch], clip: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.job, self.batches, self.clip = job, batches, clip
        self.models = nn.ModuleList(trained)
        self.measured: dict[str, list[list[float]]] = {name: [] for name in job.variants}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        # the rate of warm-up's first step: weights, and with them routings, hardly move while they are timed
        return [model.configure_optimizers()["optimizer"] for model in self.models]  # pyright: ignore[reportCallIssue]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        order = np.random.default_rng(self.job.seed)
        for block in range(self.job.blocks + 1):
            for name in order.permutation(list(self.job.variants)):
                seconds = self._block(str(name), block)
                if block:
                    self.measured[str(name)].append(seconds)

    def _block(self, name: str, block: int) -> list[float]:
        """Seconds a step of each part, on this rank; ranks begin together."""
        variant, steps, timer = self.job.variants[name], self.job.steps, StepTimer(clock_of(self.device))
        number = list(self.job.runs).index(variant.placement)
        model = self.models[number]
        set_dispatcher(model, variant.dispatcher)
        dist.barrier()
        with timer.timing(model):
            for batch in self.batches[block * steps : (block + 1) * steps]:
                self.step(number, self.mine(batch))
        return [timer.split()[part] / steps for part in PARTS]

    def mine(self, batch: Batch) -> Int[Tensor, "B _"]:
        """This rank's sequences of a whole batch."""
        return batch["tokens"][self.trainer.global_rank :: self.job.topology.num_devices]

    def step(self, number: int, tokens: Int[Tensor, "B _"]) -> dict[str, Tensor]:
        """One training step of a model; what its own `training_step` told of this rank's tokens."""
        optimizers, model, strategy = self.optimizers(), self.models[number], self.trainer.strategy
        assert isinstance(model, LanguageModel)
        assert isinstance(strategy, InTurns)
        optimizer = optimizers[number] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        told = strategy.told(number, {"tokens": tokens.to(self.device)})
        self.manual_backward(told["loss"])
        self.clip_gradients(optimizer, gradient_clip_val=self.clip)  # pyright: ignore[reportArgumentType]
        optimizer.step()
        for router in model.decoder.routers:
            router.finish_step()
        return told


def set_dispatcher(model: nn.Module, name: str) -> None:
    """Every layer's experts stay where they are; tokens come to them another way."""
    make = getattr(models.dispatch, DISPATCHERS[name])
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.dispatcher = make(layer.dispatcher.shard)  # pyright: ignore[reportAttributeAccessIssue]


def read_models(
    job: StepJob, read: Callable[[DictConfig, Path], tuple[LanguageModel, TextDataModule]] = read_module
) -> tuple[list[LanguageModel], list[Batch], dict[str, Any]]:
    """The models, whole batches for all steps of a round, and the trainer's configuration.

    Args:
        read: a run's model and its text.

    Raises:
        ValueError: a batch cannot be dealt evenly to the ranks.
    """
    configs = [run_config(Path(folder), job.outputs) for folder in job.runs.values()]
    pairs = [read(config, Path(folder)) for config, folder in zip(configs, job.runs.values(), strict=True)]
    data, num_ranks = pairs[0][1], job.topology.num_devices
    if data.sequences_per_batch % num_ranks:
        raise ValueError(f"{data.sequences_per_batch} sequences a batch cannot be dealt evenly to {num_ranks} ranks")
    batches = list(data.fresh_batches(0, (job.blocks + 1) * job.steps))
    return [module for module, _ in pairs], batches, dict(configs[0].trainer)


def measure(job: StepJob, backend: str) -> dict[str, np.ndarray] | None:
    """Train all variants in turns; what all ranks measured on rank 0, None on the others."""
    prepare_process(job.seed)
    trained, batches, given = read_models(job)
    return train_in_turns(Steps(job, trained, batches, given["gradient_clip_val"]), backend, given["precision"])


def train_in_turns(steps: Steps, backend: str, precision: Any) -> dict[str, np.ndarray] | None:
    """Let all ranks' Lightning run the one call that measures everything; as `measure`."""
    job = steps.job
    strategy = InTurns(
        job.topology,
        Placement(np.concatenate([placement.slots for placement in job.placements.values()])),
        models.dispatch.PerDeviceDispatcher,
        process_group_backend=backend,
    )
    trainer = L.Trainer(
        accelerator="gpu" if backend == "nccl" else "cpu",
        num_nodes=job.topology.nodes,
        devices=job.topology.devices_per_node,
        precision=precision,
        strategy=strategy,
        max_epochs=1,
        use_distributed_sampler=False,
        barebones=True,
    )
    trainer.fit(steps, DataLoader([0]))  # pyright: ignore[reportArgumentType]
    return gathered(steps, strategy.root_device)


def gathered(steps: Steps, device: torch.device) -> dict[str, np.ndarray] | None:
    """By variant (G, B, parts), on rank 0."""
    parts = on_first_rank(torch.tensor(list(steps.measured.values()), device=device))
    if parts is None:
        return None
    return dict(zip(steps.measured, torch.stack(parts, 1).cpu().numpy(), strict=True))


def main(folder: Path, backend: str) -> None:
    # of logs that are not kept
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = measure(read_job(folder), backend)
    if found is not None:
        write_atomically(folder / "measured.npz", lambda file: np.savez(file, allow_pickle=False, **found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
