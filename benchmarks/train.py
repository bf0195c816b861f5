"""Train a model on real text and record what its routers do.

python -m benchmarks.train setting=nano16 seed=0 scale=cpu
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors, versions
from benchmarks.record import Record
from benchmarks.rows import Rows
from models.callbacks.balance import BalanceMonitor
from models.callbacks.probe import NoiseRecorder, ProbeRecorder
from models.callbacks.recorder import LoadRecorder
from models.callbacks.volume import VolumeRecorder
from models.data import TextDataModule
from models.expert_parallel import ExpertParallelStrategy
from models.expert_parallel.fully_sharded import FullyShardedExpertParallelStrategy
from models.language_model import LanguageModel
from models.moe import MoELayer
from models.transformer import Transformer
from traces.load import TraceSource


def build_data(config: DictConfig, order: int | None = None) -> TextDataModule:
    """The data module of a training configuration; a run is one Lightning epoch.

    `order` seeds the order of the training text, by default the run's own seed.
    """
    trainer = config.trainer
    return TextDataModule(
        **config.data,
        seed=config.seed if order is None else order,
        num_batches=trainer.max_steps * trainer.accumulate_grad_batches,
        cache=Path(config.outputs) / "cache",
    )


def build_module(config: DictConfig, data: TextDataModule, **given: np.ndarray) -> LanguageModel:
    """The LightningModule of a training configuration; raises ValueError where text and model disagree.

    `given` are a router's arguments that no YAML can hold: a profile, the devices of experts.
    """
    if config.model.vocab_size != data.vocab_size:
        raise ValueError(
            f"model.vocab_size = {config.model.vocab_size}, the tokenizer {data.tokenizer} has {data.vocab_size}"
        )
    transformer = instantiate(
        config.model,
        router=instantiate(config.router, **given),
        experts=instantiate(config.experts),
        dispatcher=instantiate(config.dispatcher),
    )
    return LanguageModel(transformer, total_steps=config.trainer.max_steps, domains=data.domains, **config.optimizer)


def build_source(config: DictConfig, data: TextDataModule, num_sequences: int) -> TraceSource:
    """What a trace says of its origin, for steps of `num_sequences` sequences."""
    return TraceSource(
        model=config.setting,
        router=config.router["_target_"].rsplit(".", 1)[-1],
        seed=config.seed,
        tokens_per_step=num_sequences * config.data.sequence_length,
        top_k=config.router.top_k,
        data_fingerprint=data.fingerprint,
        version=versions()["moelab"],
    )


def build_callbacks(config: DictConfig, data: TextDataModule, folder: Path, strategy: Any = None) -> list[Callback]:
    """Recorders, monitors and checkpoints of a training run with a Lightning strategy; recorders before checkpoints."""
    recording, trainer = config.recording, config.trainer
    step_sequences = config.data.sequences_per_batch * trainer.accumulate_grad_batches
    source = build_source(config, data, step_sequences)
    probe = data.probe_batch(recording.probe_sequences)[:, :-1]
    micro_batches = [
        batch["tokens"][:, :-1]
        for batch in data.fresh_batches(0, recording.noise_batches * trainer.accumulate_grad_batches)
    ]
    noise_steps = [round(share * trainer.max_steps) - 1 for share in recording.noise_at]
    is_sharded = isinstance(strategy, ExpertParallelStrategy)
    return [
        LoadRecorder(folder / "trace", source, recording.chunk_steps, recording.routing_every),
        ProbeRecorder(
            folder / "probe",
            build_source(config, data, recording.probe_sequences),
            probe,
            recording.probe_every,
        ),
        NoiseRecorder(folder, source, micro_batches, trainer.accumulate_grad_batches, noise_steps),
        BalanceMonitor(recording.balance_every),
        *([VolumeRecorder(strategy.topology, recording.balance_every)] if is_sharded else []),
        LearningRateMonitor("step"),
        build_checkpoints(folder, recording.checkpoint_every),
    ]


def build_checkpoints(folder: Path, every: int) -> ModelCheckpoint:
    """Saves the newest state of a run every so many steps, to resume from."""
    return ModelCheckpoint(
        folder / "checkpoints",
        filename="{step}",
        every_n_train_steps=every,
        save_top_k=1,
        monitor="step",
        mode="max",
        enable_version_counter=False,
    )


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Train, resuming from the folder's last checkpoint; held-out losses become records, the trace stays beside."""
    prepare_process(config.seed)
    data = build_data(config)
    module = build_module(config, data)
    given = instantiate(config.trainer, _convert_="all")
    # before those that record and save
    chosen = [*given.pop("callbacks", {}).values()]
    trainer = L.Trainer(
        **given,
        logger=tracker.lightning_logger(folder),
        callbacks=[*chosen, *build_callbacks(config, data, folder, given.get("strategy"))],
        use_distributed_sampler=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=config.recording.balance_every,
        default_root_dir=folder,
    )
    check_memory(module, trainer.strategy)
    trainer.fit(module, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    keep_last(trainer, folder)
    validate_once(trainer, module, data)
    return Measurement(training_records(config, trainer, data), data_fingerprint=data.fingerprint)


def keep_last(trainer: L.Trainer, folder: Path) -> None:
    """Save the last step's checkpoint where the steps are no multiple of those between checkpoints."""
    path = folder / "checkpoints" / f"step={trainer.global_step}.ckpt"
    # one answer for all ranks: they save together
    if not trainer.strategy.broadcast(path.exists()):
        trainer.save_checkpoint(path)


def validate_once(trainer: L.Trainer, module: LanguageModel, data: TextDataModule) -> None:
    """Validate a run that was resumed from its last step: there was nothing left to fit, so nothing was validated."""
    if not any(key.startswith("held_out/") for key in trainer.callback_metrics):
        trainer.validate(module, data, verbose=False)


def prepare_process(seed: int) -> None:
    """Seed every generator and set up what holds for a whole training process."""
    # one primitive is cached for every expert size, which grows without bound (and was slower)
    torch.backends.mkldnn.enabled = False
    L.seed_everything(seed, workers=True, verbose=False)
    # which accelerators there are, and advertisements
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def check_memory(module: LanguageModel, strategy: Strategy) -> None:
    """Refuse a model whose weights, gradients and Adam states alone exceed a CUDA device.

    Raises:
        ValueError: names both sizes.
    """
    device = strategy.root_device
    if device.type != "cuda":
        return
    with torch.device("meta"):
        decoder = module.build()
    is_sharded = isinstance(strategy, ExpertParallelStrategy)
    devices, spare = (strategy.topology.num_devices, strategy.spare_slots) if is_sharded else (1, 0)
    shares_dense = isinstance(strategy, FullyShardedExpertParallelStrategy)
    needed, held = (
        bytes_needed(decoder, devices, shares_dense, spare),
        torch.cuda.get_device_properties(device).total_memory,
    )
    if needed > held:
        raise ValueError(
            f"weights, gradients and Adam states need {needed / 1e9:.0f} GB on every device, this one has "
            f"{held / 1e9:.0f} GB: shard the experts over more (trainer=expert_parallel_gpu) or take a smaller setting"
        )


def bytes_needed(decoder: Transformer, num_devices: int, shares_dense: bool = False, spare_slots: int = 0) -> int:
    """Bytes of weights, gradients and Adam states on a device, of experts dealt to so many devices, the rest too or
    not; spare slots take as much as full ones."""
    experts = [layer.experts for layer in decoder.modules() if isinstance(layer, MoELayer)]
    of_experts = sum(parameter[0].numel() for one in experts for parameter in one.parameters())
    slots = -(-decoder.num_experts // num_devices) + spare_slots
    dense = sum(parameter.numel() for parameter in decoder.parameters()) - decoder.num_experts * of_experts
    return 16 * (slots * of_experts + (-(-dense // num_devices) if shares_dense else dense))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None; a kill between saving one and removing the last leaves two."""
    found = folder.glob("checkpoints/step=*.ckpt")
    return max(found, key=lambda path: int(path.stem.split("=")[1]), default=None)


def training_records(config: DictConfig, trainer: L.Trainer, data: TextDataModule) -> list[Record]:
    """Held-out cross-entropy in nats a token, by domain and over all, and how often the text was read, as rows."""
    rows = Rows(config, ground=trainer.strategy.root_device.type)
    add_held_out(rows, trainer)
    rows.add("epochs", data.epochs)
    rows.add(
        "tokens_per_step",
        float(config.data.sequence_length * config.data.sequences_per_batch) * config.trainer.accumulate_grad_batches,
    )
    return rows.records


def add_held_out(rows: Rows, trainer: L.Trainer, **columns: Any) -> None:
    """What the last validation found, by domain and over all."""
    for key, value in sorted(trainer.callback_metrics.items()):
        if key.startswith("held_out/"):
            rows.add(key, float(value), **columns)


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        run_cell(config, [config.setting, f"seed{config.seed}"], measure)


if __name__ == "__main__":
    main()
