"""One arm of a comparison of routers: a pretrained model goes on with another router, and is measured.

python -m benchmarks.train_router setting=nano16 seed=0 scale=cpu router=variant/c2r_t8 steps=250
python -m benchmarks.train_router setting=nano16 seed=0 scale=cpu router=topk steps=250        # the plain arm beside it

The protocol of Zhang et al. (2025, arXiv 2504.01337): pretrain with the plain router, profile, switch, go on. Arms of
one seed and continuation read the same text in the same order. The folder keeps, beside the records:

    routing/held_out    a trace folder: how held-out text was routed, for the exact volume of communication
    routing/profile     the same of training text, from which experts are placed
    placement.npz       slots (L, G, C): where experts live, for routers that were told
    given.npz           what the router was given: a profile, the devices of experts
    items.npz           per downstream task the correctness of every item
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.arms import (
    DEVICES,
    NODES,
    PROFILE,
    arm_labels,
    is_told,
    place,
    short_name,
    with_parent,
    write_placement,
)
from benchmarks.cell import Measurement, is_first_process, run_cell, user_errors
from benchmarks.evaluate import add_bits, add_tasks, evaluate_tasks
from benchmarks.held_out import bits_per_byte
from benchmarks.paired import write_scores
from benchmarks.rows import Rows
from benchmarks.train import (
    add_held_out,
    build_checkpoints,
    build_data,
    build_module,
    build_source,
    keep_last,
    newest_checkpoint,
    prepare_process,
    validate_once,
)
from benchmarks.trained import on_one_device, read_parent, write_given
from models.callbacks.balance import BalanceMonitor
from models.data import TextDataModule
from models.language_model import LanguageModel
from models.profiling import routing_trace
from placement.topology import Topology
from traces.routing import RoutingTrace
from traces.store import TraceWriter


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Profile the parent, train with the router, then measure quality and keep the routings."""
    refuse_strategy(config)
    prepare_process(config.seed)
    data = build_data(config, order=text_order(config))
    module = build_arm(config, data, folder)
    trainer = L.Trainer(
        **config.trainer,
        logger=tracker.lightning_logger(folder),
        callbacks=build_callbacks(config, folder),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=config.recording.balance_every,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    keep_last(trainer, folder)
    validate_once(trainer, module, data)
    rows = Rows(config, method=router_name(), ground=trainer.strategy.root_device.type)
    add_held_out(rows, trainer, horizon=config.steps)
    if is_first_process():
        # text by itself: the trained one's is dealt to the ranks
        observe(rows, config, module, build_data(config, order=text_order(config)), folder)
    return Measurement(rows.records, data_fingerprint=data.fingerprint)


def refuse_strategy(config: DictConfig) -> None:
    """Refuse what holds a part of the experts on each device.

    Raises:
        ValueError: names the strategy and what can be taken.
    """
    if not isinstance(strategy := config.trainer.get("strategy", "auto"), str):
        raise ValueError(
            f"an arm's routing is observed on one device, which needs the whole model there: the strategy "
            f"{strategy.get('_target_')} cannot be used, take trainer=cpu or trainer=gpu"
        )


def observe(rows: Rows, config: DictConfig, module: LanguageModel, data: TextDataModule, folder: Path) -> None:
    """Quality and routings of the trained model, on one device at the precision it was trained with."""
    with on_one_device(config, module):
        add_quality(rows, config, module, data, folder)
        keep_routings(config, module, data, folder)


def text_order(config: DictConfig) -> int:
    """Seed of the training text's order: never the parent's own, the same for all arms of a continuation."""
    return 1_000 * (config.continuation + 1) + config.seed


def router_name() -> str:
    """The router's file name in conf/router, without the folder of variants."""
    return short_name(HydraConfig.get().runtime.choices["router"])


def build_arm(config: DictConfig, data: TextDataModule, folder: Path) -> LanguageModel:
    """The model with its new router, told what that needs of the parent, and holding the parent's weights.

    Raises:
        ValueError: the parent is not trained yet, or its weights do not fit.
    """
    parent, parent_data = read_parent(config)
    given = {}
    if PROFILE in config.router or is_told(config.router):
        with on_one_device(config, parent):
            profile = profile_of(config, parent, parent_data)
        placement = place(config, profile)
        if is_told(config.router):
            write_placement(folder, placement)
        device_LE = placement.device_of_expert
        node_LE = instantiate(config.topology).node_of_device[device_LE]
        known = {PROFILE: profile.collaboration(), DEVICES: device_LE, NODES: node_LE}
        # what a user set stays as it was set
        given = {name: value for name, value in known.items() if name in config.router and config.router[name] is None}
        write_given(folder, given)
    module = build_module(with_scaled_rates(config), data, **given)
    module.configure_model()
    if config.start == "parent":
        adopt(module, parent.state_dict())
    return module


def with_scaled_rates(config: DictConfig) -> DictConfig:
    """A copy whose learning rates are `rate_scale` times the setting's."""
    scaled = config.copy()
    for rate in ("learning_rate", "final_learning_rate"):
        scaled.optimizer[rate] = config.optimizer[rate] * config.rate_scale
    return scaled


def adopt(module: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Load a plain model's weights; only what a router has beyond its gate may be missing, and starts fresh.

    Raises:
        ValueError: anything else is missing, or the parent has weights that this model lacks.
    """
    missing, unexpected = module.load_state_dict(weights, strict=False)
    lost = [name for name in missing if ".router." not in name or name.endswith("gate.weight")]
    if lost or unexpected:
        raise ValueError(f"the parent's weights do not fit: missing {lost}, not known here {list(unexpected)}")


def build_callbacks(config: DictConfig, folder: Path) -> list[L.Callback]:
    """Monitors, and checkpoints to resume from."""
    return [
        BalanceMonitor(config.recording.balance_every),
        LearningRateMonitor("step"),
        build_checkpoints(folder, config.recording.checkpoint_every),
    ]


def add_quality(rows: Rows, config: DictConfig, module: LanguageModel, data: TextDataModule, folder: Path) -> None:
    """Bits per byte by domain, and the downstream tasks if any were asked for."""
    columns: dict[str, Any] = {"horizon": config.steps}
    add_bits(rows, bits_per_byte(module, data), **columns)
    rows.add("causal", float(all(router.causal for router in module.decoder.routers)), **columns)
    if not config.tasks.num_items:
        return
    scores = evaluate_tasks(module, data, Path(config.outputs) / "cache", config.tasks.num_items)
    add_tasks(rows, scores, **columns)
    write_scores(folder / "items.npz", scores)


def keep_routings(config: DictConfig, module: LanguageModel, data: TextDataModule, folder: Path) -> None:
    """Route held-out and training text once more through the trained model and keep every choice."""
    write_routing(folder / "routing" / "held_out", routed(config, module, data, held_out_tokens(config, data)))
    write_routing(folder / "routing" / "profile", profile_of(config, module, data))


def profile_of(config: DictConfig, module: LanguageModel, data: TextDataModule) -> RoutingTrace:
    """How a model routes a seeded sample of the training text that it was not trained on in this order."""
    batches = (batch["tokens"][:, :-1] for batch in data.fresh_batches(config.profile.first, config.profile.batches))
    return routed(config, module, data, batches)


def held_out_tokens(config: DictConfig, data: TextDataModule) -> Iterator[Tensor]:
    """The first held-out batches, domains in turn."""
    return (batch["tokens"][:, :-1] for batch in islice(data.val_dataloader(), config.evaluation.batches))


def routed(config: DictConfig, module: LanguageModel, data: TextDataModule, batches: Iterator[Tensor]) -> RoutingTrace:
    """A routing trace whose sequences are dealt to the devices of the topology."""
    topology: Topology = instantiate(config.topology)
    source = build_source(config, data, config.data.sequences_per_batch)
    return routing_trace(module, batches, source, topology.num_devices)


def write_routing(folder: Path, trace: RoutingTrace) -> None:
    """Keep a routing trace as a trace folder."""
    writer = TraceWriter(folder, trace.source, trace.expert_indices.shape[1], trace.num_experts)
    for step, chosen_LTK in zip(trace.step, trace.expert_indices, strict=True):
        writer.write_routing(int(step), chosen_LTK, trace.source_device)


@hydra.main(config_path="../conf", config_name="train_router", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        if config.tasks.num_items:
            # an extra: what is missing is told before the training, not after it
            import benchmarks.harness  # noqa: F401
        config = with_parent(config)
        run_cell(config, arm_labels(config, router_name()), measure)


if __name__ == "__main__":
    main()
