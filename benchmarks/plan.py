"""From experiments to the processes that measure them: cells, the training runs they need, expected minutes."""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf

from benchmarks.arms import arm_labels, arm_overrides, needed_arms, seeds_of, with_arms
from benchmarks.cell import ROOT, compose_with_choices, fingerprint
from benchmarks.recorded import is_drawn, training_config, with_run

EXPERIMENTS = ROOT / "conf" / "experiment"
SCALES = ("smoke", "cpu", "full", "gpu", "paper")


@dataclass(frozen=True)
class Stage:
    """One process of at most 20 minutes on the full scale.

    Attributes:
        experiment: whose cell it measures; "train" for a training run.
        name: readable, unique within a plan.
        command: to be run from the repository's root.
        fingerprint: of the cell.
        outputs: root of all cells.
        scale: of the cell.
        alone: whether it measures seconds, which other stages would lengthen.
    """

    experiment: str
    name: str
    command: tuple[str, ...]
    fingerprint: str
    outputs: str
    scale: str
    alone: bool = False

    @property
    def folder(self) -> Path | None:
        """The cell's folder once it was begun."""
        parent = Path(self.outputs) / self.scale / self.experiment
        return next(parent.glob(f"*-{self.fingerprint}"), None)

    @property
    def finished(self) -> bool:
        return self.folder is not None and (self.folder / "cell.json").exists()


def experiment_names() -> list[str]:
    """Every experiment in conf/experiment, in the report's order."""
    return sorted((path.stem for path in EXPERIMENTS.glob("*.yaml")), key=lambda name: load_experiment(name)["order"])


def load_experiment(name: str) -> dict[str, Any]:
    """The experiment's YAML as plain data; ValueError lists the known ones where there is none of that name."""
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.exists():
        raise ValueError(
            f"no experiment {name!r}; there are {', '.join(sorted(p.stem for p in EXPERIMENTS.glob('*.yaml')))}"
        )
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def cell_overrides(experiment: dict[str, Any], scale: str) -> list[list[str]]:
    """The override lists of an experiment's grid at a scale: its sweep, with what `at_scale` sets instead."""
    params = {**experiment["hydra"]["sweeper"]["params"], **experiment.get("at_scale", {}).get(scale, {})}
    choices = []
    for key, value in params.items():
        (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
        choices.append([f"{key}={one}" for one in _values(override, str(value))])
    return [list(cell) for cell in itertools.product(*choices)]


def _values(override: Override, value: str) -> list[str]:
    """What a swept key takes on: a list, or glob(*) for every file of a group, as Hydra's own sweeper has it."""
    if not override.is_sweep_override():
        return [value]
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return list(override.sweep_string_iterator())
    return pattern.filter(sorted(path.stem for path in (ROOT / "conf" / override.key_or_group).glob("*.yaml")))


@dataclass
class Plan:
    """Stages in the order of their needs, each once: training runs, the arms that go on from them, the cells."""

    training: dict[str, Stage] = field(default_factory=dict)
    arms: dict[str, Stage] = field(default_factory=dict)
    cells: list[Stage] = field(default_factory=list)

    @property
    def levels(self) -> list[list[Stage]]:
        """Lists of stages that may run side by side."""
        return [list(self.training.values()), list(self.arms.values()), self.cells]


def plan(names: list[str], scale: str, outputs: str, logger: str) -> Plan:
    """All stages that experiments need at a scale.

    Raises:
        ValueError: an unknown experiment or scale.
    """
    if scale not in SCALES:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
    found = Plan()
    common = [f"outputs={outputs}", f"logger={logger}"]
    for name in names:
        experiment = load_experiment(name)
        for overrides in cell_overrides(experiment, scale):
            arguments = [f"experiment={name}", f"trace.scale={scale}", *common, *overrides]
            config, choices = compose_with_choices(experiment["entry"], arguments)
            if "arm" in config:
                config = with_arms(config, choices)
                _add_arms(found, config, choices, common)
            else:
                config = with_run(config)
            for seed in [] if is_drawn(config) else seeds_of(config):
                _add_training(found, config.setting, seed, config, common)
            swept = [part.split("=", 1) for part in overrides]
            grid = experiment["hydra"]["sweeper"]["params"]
            label = " ".join([name, *(value for key, value in swept if key in grid and "[" not in value)])
            command = _command(experiment["entry"], ["hydra.mode=RUN", *arguments])
            alone = "ground" in choices
            found.cells.append(Stage(name, label, command, fingerprint(config), outputs, scale, alone))
    return found


def _add_training(found: Plan, setting: str, seed: int, config: DictConfig, common: list[str]) -> None:
    run = training_config(setting, seed, config.scale, config.outputs)
    arguments = [f"setting={setting}", f"seed={seed}", f"scale={config.scale}", *common]
    name = f"train {setting} seed {seed}"
    found.training[name] = Stage(
        "train", name, _command("train", arguments), fingerprint(run), config.outputs, config.scale
    )


def _add_arms(found: Plan, config: DictConfig, choices: dict[str, str], common: list[str]) -> None:
    for router, arm in needed_arms(config, choices):
        key = fingerprint(arm)
        name = " ".join(["arm", *arm_labels(arm, router), key[:4]])
        command = _command("train_router", [*arm_overrides(arm, router, choices), *common])
        found.arms[key] = Stage("train_router", name, command, key, config.outputs, config.scale)


def _command(entry: str, arguments: list[str]) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{entry}", *arguments)
