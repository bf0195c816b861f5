"""From experiments to the processes that measure them: cells, the training runs they need, expected minutes."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from benchmarks.cell import ROOT, compose, fingerprint
from benchmarks.recorded import training_config, with_run

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
    """

    experiment: str
    name: str
    command: tuple[str, ...]
    fingerprint: str
    outputs: str
    scale: str

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
        values = override.sweep_string_iterator() if override.is_sweep_override() else [value]
        choices.append([f"{key}={one}" for one in values])
    return [list(cell) for cell in itertools.product(*choices)]


def plan(names: list[str], scale: str, outputs: str, logger: str) -> tuple[list[Stage], list[Stage]]:
    """The training runs that the experiments need (each once), and their cells.

    Raises:
        ValueError: an unknown experiment or scale.
    """
    if scale not in SCALES:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
    training: dict[str, Stage] = {}
    cells = []
    common = [f"outputs={outputs}", f"logger={logger}"]
    for name in names:
        experiment = load_experiment(name)
        for overrides in cell_overrides(experiment, scale):
            arguments = [f"experiment={name}", f"trace.scale={scale}", *common, *overrides]
            config = with_run(compose(experiment["entry"], arguments))
            run = training_config(config.setting, config.seed, scale, outputs)
            run_name = f"{config.setting} seed {config.seed}"
            run_arguments = [f"setting={config.setting}", f"seed={config.seed}", f"scale={scale}", *common]
            training[run_name] = Stage(
                "train",
                f"train {run_name}",
                _command("train", run_arguments),
                fingerprint(run),
                outputs,
                scale,
            )
            swept = [part.split("=", 1) for part in overrides]
            grid = experiment["hydra"]["sweeper"]["params"]
            label = " ".join([name, *(value for key, value in swept if key in grid and "[" not in value)])
            command = _command(experiment["entry"], ["hydra.mode=RUN", *arguments])
            cells.append(Stage(name, label, command, fingerprint(config), outputs, scale))
    return list(training.values()), cells


def _command(entry: str, arguments: list[str]) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{entry}", *arguments)
