"""The arms that an analysis compares: which training with which router it reads, and from where."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks.cell import cell_folder, compose, compose_with_choices, fingerprint
from benchmarks.placement_file import read_placement_file, write_placement_file
from benchmarks.record import Record, read_records
from benchmarks.recorded import training_config
from placement.topology import Placement, Topology
from traces.routing import RoutingTrace
from traces.store import read_routings

PLAIN = "topk"
# in the folder of an arm whose router was told where experts live
PLACEMENT = "placement.npz"
# the groups whose files name an arm
HOUSED = ("router", "placement", "topology")
# what a router can be given, by the key that its YAML has
PROFILE, DEVICES, NODES = "collaboration", "device_of_expert", "node_of_expert"


class Arm(NamedTuple):
    """A trained arm: the configuration of its training, and where it is kept."""

    config: DictConfig
    folder: Path


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose("train_router", list(overrides))


def arm_config(config: DictConfig, choices: Mapping[str, str], router: str, seed: int, continuation: int) -> DictConfig:
    """The composed configuration of one arm.

    Placement and topology belong to it only where its router is told of them: other arms serve every placement.

    Args:
        config: of the analysis; its `arm` says how the arms were trained.
        choices: the analysis' chosen files by group; placement and topology are read.
        router: a file name in conf/router, e.g. "variant/c2r_t8".
    """
    where = (f"router={router}", f"setting={config.setting}", f"scale={config.scale}", f"start={config.arm.start}")
    made = _composed(where)
    if is_told(made.router):
        made = _composed((*where, *_housing(choices)))
    made = made.copy()
    made.outputs, made.seed, made.continuation = config.outputs, seed, continuation
    made.steps, made.tasks.num_items = config.arm.steps, config.arm.num_items
    return with_parent(made)


def with_parent(arm: DictConfig) -> DictConfig:
    """Make the parent part of an arm's identity: it is trained again when its parent changes."""
    with open_dict(arm):
        arm.parent_run = fingerprint(training_config(arm.setting, arm.seed, arm.scale, arm.outputs))
    return arm


def arm_overrides(arm: DictConfig, router: str, choices: Mapping[str, str]) -> list[str]:
    """What the command line of an arm says beyond the defaults."""
    named = ("setting", "seed", "scale", "start", "steps", "continuation")
    housing = _housing(choices) if is_told(arm.router) else []
    return [
        f"router={router}",
        *(f"{key}={arm[key]}" for key in named),
        f"tasks.num_items={arm.tasks.num_items}",
        *housing,
    ]


def _housing(choices: Mapping[str, str]) -> list[str]:
    return [f"{group}={choices[group]}" for group in ("placement", "topology")]


def is_told(router: DictConfig) -> bool:
    """Whether a router is told where experts live, so that an arm is trained for one placement."""
    return DEVICES in router or NODES in router


def needed_arms(config: DictConfig, choices: Mapping[str, str]) -> list[tuple[str, DictConfig]]:
    """Every arm that an analysis cell reads, after its router's name: its own and the plain one's, of each seed and
    continuation."""
    return [
        (router, arm_config(config, choices, router, seed, continuation))
        for router in routers_of(config, choices)
        for seed in seeds_of(config)
        for continuation in config.arm.continuations
    ]


def routers_of(config: DictConfig, choices: Mapping[str, str]) -> list[str]:
    """The routers that a cell compares: the plain one, and those of its variants or the chosen one."""
    named = [variant.router for variant in config.variants] if "variants" in config else [choices["router"]]
    return list(dict.fromkeys((PLAIN, *named)))


def seeds_of(config: DictConfig) -> list[int]:
    """The parents' seeds that a cell is about: one, or a list."""
    seed = config.trace.seed
    return [seed] if isinstance(seed, int) else list(seed)


def with_arms(config: DictConfig, choices: Mapping[str, str]) -> DictConfig:
    """Make the arms part of the cell's identity: a cell is measured again when one of them changes.

    Arms are trained with what a file of conf/router, conf/placement and conf/topology says.
    """
    with open_dict(config):
        if "router" in choices:
            config.router_name = choices["router"]
        config.arm_runs = [fingerprint(arm) for _, arm in needed_arms(config, choices)]
    return config


def arm_folder(arm: DictConfig, router: str, choices: Mapping[str, str]) -> Path:
    """Where an arm is kept.

    Raises:
        ValueError: it has not been trained to its end; says how to do that.
    """
    folder = cell_folder(arm, *arm_labels(arm, router))
    if not (folder / "cell.json").exists():
        raise ValueError(
            f"{folder}: this arm is not trained yet; run `python -m benchmarks.train_router "
            f"{' '.join(arm_overrides(arm, router, choices))}`"
        )
    return folder


def trained_arms(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Arm]:
    """The arms that a cell of one seed compares, by router: those of the first continuation.

    Raises:
        ValueError: one has not been trained to its end; says how to do that.
    """
    arms = {}
    for router in routers_of(config, choices):
        arm = arm_config(config, choices, router, config.seed, config.arm.continuations[0])
        arms[router] = Arm(arm, arm_folder(arm, router, choices))
    return arms


def refuse_overrides(config: DictConfig, choices: Mapping[str, str]) -> None:
    """Refuse keys of an analysis' router, placement or topology that differ from their files: no arm has them.

    Raises:
        ValueError: names the group and what to do.
    """
    as_filed, _ = compose_with_choices(config.entry, [f"{group}={choices[group]}" for group in HOUSED])
    for group in HOUSED:
        found, filed = (OmegaConf.to_container(one[group], resolve=False) for one in (config, as_filed))
        if found != filed:
            raise ValueError(
                f"{group}.* cannot be changed here: arms are named by files, so add conf/{group}/NAME.yaml with "
                f"{found} and take {group}=NAME"
            )


def arm_labels(arm: DictConfig, router: str) -> list[str]:
    """An arm's readable name."""
    return [arm.setting, f"seed{arm.seed}", short_name(router), f"c{arm.continuation}"]


def short_name(router: str) -> str:
    """A router's file name without the folder of variants."""
    return router.rsplit("/", 1)[-1]


def read_quality(folder: Path) -> list[Record]:
    """What an arm recorded of its quality."""
    return read_records(folder / "records.csv")


def read_arm_routing(folder: Path, which: str, num_devices: int) -> RoutingTrace:
    """An arm's routing of "held_out" or "profile" text, dealt to so many devices in runs of equal length.

    Raises:
        ValueError: the tokens of a batch cannot be dealt evenly.
    """
    trace = read_routings(folder / "routing" / which)
    num_tokens = len(trace.source_device)
    if num_tokens % num_devices:
        raise ValueError(f"{num_tokens} tokens a batch cannot be dealt evenly to {num_devices} devices")
    source = np.repeat(np.arange(num_devices), num_tokens // num_devices)
    return RoutingTrace(trace.step, trace.expert_indices, source, trace.num_experts, trace.source)


def place(config: DictConfig, routing: RoutingTrace) -> Placement:
    """The configured placement, on the configured topology, of experts whose routing is known."""
    topology: Topology = instantiate(config.topology)
    slots = -(-routing.num_experts // topology.num_devices)
    load_LE = routing.loads().sum(0)
    return instantiate(config.placement)(load_LE, topology, slots_per_device=slots, routing=routing.sets())


def placed(config: DictConfig, arm: Arm, topology: Topology) -> Placement:
    """The placement that an arm's router was told, or the configured one planned on how it routes training text."""
    if is_told(arm.config.router):
        return read_placement_file(arm.folder / PLACEMENT)
    return place(config, read_arm_routing(arm.folder, "profile", topology.num_devices))


def write_placement(folder: Path, placement: Placement) -> None:
    """Keep where the experts of an arm were said to live while it was trained."""
    write_placement_file(folder / PLACEMENT, placement)
