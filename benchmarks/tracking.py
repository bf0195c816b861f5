"""Who is told of a cell: Weights & Biases (offline by default, no account) or plain CSV files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from traces.atomic import write_text_atomically

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from benchmarks.cell import Measurement


class Tracker(Protocol):
    """What a logger configuration builds."""

    def start(self, folder: Path, labels: list[str], experiment: str, entry: str, config: dict[str, Any]) -> str:
        """Begin or continue the cell's run and return its id."""
        ...

    def lightning_logger(self, folder: Path) -> "Logger":
        """The logger that a Trainer takes."""
        ...

    def finish(self, folder: Path, measurement: "Measurement") -> None:
        """Add the cell's records and files, and close the run."""
        ...


class WandbTracker:
    """One W&B run a cell: group = experiment, job type = entry point, tags = setting, method.

    The run's id is kept in the cell's folder, so that a resumed cell continues the same run.

    Args:
        project: W&B project.
        mode: "offline" keeps everything in the cell's folder until `wandb sync`; "online" needs an account.
    """

    def __init__(self, project: str, mode: str) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"logger.mode must be offline or online, got {mode!r}")
        self.project, self.mode = project, mode
        self._run: Any = None

    def start(self, folder: Path, labels: list[str], experiment: str, entry: str, config: dict[str, Any]) -> str:
        # the client prints a banner for every run, which a hundred cells do not need
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "wandb_id"
        known_id = id_file.read_text(encoding="utf-8") if id_file.exists() else None
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,  # type: ignore[arg-type]
            dir=folder,
            id=known_id,
            resume="allow" if self.mode == "online" else None,
            name="-".join(labels),
            group=experiment,
            job_type=entry,
            tags=labels,
            config=config,
        )
        write_text_atomically(id_file, self._run.id)
        return self._run.id

    def lightning_logger(self, folder: Path) -> "Logger":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(experiment=self._run, save_dir=folder)

    def finish(self, folder: Path, measurement: "Measurement") -> None:
        import wandb

        for record in measurement.records:
            self._run.summary[metric_key(record)] = record.value
        for name, page in figure_pages(measurement).items():
            self._run.log({f"figures/{name}": wandb.Html(page, inject=False)})
        artifact = wandb.Artifact(f"cell-{folder.name}", type="cell")
        for path in [*folder.glob("*.csv"), *folder.glob("*.json")]:
            artifact.add_file(str(path))
        if (folder / "trace").exists():
            artifact.add_dir(str(folder / "trace"), name="trace")
        self._run.log_artifact(artifact)
        self._run.finish()


class CsvTracker:
    """No tracking service: Lightning's CSV logger while training, and the cell's own files."""

    def start(self, folder: Path, labels: list[str], experiment: str, entry: str, config: dict[str, Any]) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return ""

    def lightning_logger(self, folder: Path) -> "Logger":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="", version="metrics")

    def finish(self, folder: Path, measurement: "Measurement") -> None:
        """Nothing to close: records.csv is there already."""


def figure_pages(measurement: "Measurement") -> dict[str, str]:
    """The cell's own series as small HTML pages, by figure; none where it has no series."""
    if not measurement.curves:
        return {}
    from benchmarks.figures import draw_figures, parse_curves
    from benchmarks.svg import palette_css

    style = f"<style>:root {{ {palette_css('light')} }} svg {{ max-width: 34rem; display: block }}</style>"
    figures = draw_figures([], parse_curves(measurement.curves), [])
    return {
        figure.name: style + "".join(f"<h4>{panel.title}</h4>{panel.svg}" for panel in figure.panels)
        for figure in figures
    }


def metric_key(record: Any) -> str:
    """Documented key of a figure in W&B: METRIC/METHOD, then what is not at its default (docs/metrics.md)."""
    parts = [record.metric]
    if record.method != "-":
        parts.append(record.method)
    if record.horizon:
        parts.append(f"horizon_{record.horizon}")
    if record.state != "all":
        parts.append(record.state)
    if record.layer != "all":
        parts.append(f"layer_{record.layer}")
    return "/".join(parts)
