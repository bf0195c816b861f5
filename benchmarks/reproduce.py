"""Run the experiments of the suite at a scale and report what they say of the papers' claims.

python -m benchmarks.reproduce --scale cpu
python -m benchmarks.reproduce --scale full --experiments paper1_states paper1_forecast

Stages are cached by their configuration: run the same command again after an interruption and it continues. A stage
that cannot run says why, and the others go on.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cell import compose
from benchmarks.plan import SCALES, Stage, experiment_names, load_experiment, plan
from benchmarks.record import read_cell, read_records, write_cells, write_records
from benchmarks.report import CONF, print_verdicts, section, write
from benchmarks.results import read_results
from traces.atomic import write_text_atomically
from traces.store import TraceWriter, read_loads


class Runner:
    """Runs stages side by side, one thread each, those that measure seconds after them and alone; knows what failed.

    Args:
        jobs: processes at a time.
        minutes: declared for all of them, from which the time left is told until the stages' own pace is known.
    """

    def __init__(self, jobs: int, minutes: float, total: int) -> None:
        self.jobs, self.failed = jobs, dict[Stage, str]()
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # without a terminal there is no width to keep to, and narrow tables are hard to read in a log
        self.console = Console(width=None if sys.stdout.isatty() else 160)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("about {task.fields[left]:.0f} min left"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self.progress.add_task("stages", total=total, left=minutes)
        self._started, self._minutes = time.monotonic(), minutes
        self._total, self._waiting, self._measured = total, total, 0

    def run(self, stages: list[Stage]) -> None:
        """Run stages that are not finished yet; KeyboardInterrupt ends the children and leaves all resumable."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                list(pool.map(self._run, [stage for stage in stages if not stage.alone]))
                list(map(self._run, [stage for stage in stages if stage.alone]))
            except KeyboardInterrupt:
                self._stopping.set()
                for child in list(self._children):
                    child.terminate()
                raise

    def _run(self, stage: Stage) -> None:
        if self._stopping.is_set():
            return
        started = time.monotonic()
        said = "cached" if stage.finished else self._measure(stage)
        with self._lock:
            self._waiting -= 1
            self._measured += said == "done"
            self.progress.update(self._task, advance=1, left=self._minutes_left())
            self.console.print(f"{said:>7} {time.monotonic() - started:6.0f} s  {stage.name}", highlight=False)

    def _minutes_left(self) -> float:
        """At the pace of the stages measured so far; as declared while there are too few of them."""
        if self._measured < 3:
            return self._minutes * self._waiting / self._total
        return (time.monotonic() - self._started) / 60 / self._measured * self._waiting

    def _measure(self, stage: Stage) -> str:
        log = Path(stage.outputs) / stage.scale / "logs" / f"{stage.name.replace(' ', '-').replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            child = subprocess.Popen(
                stage.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        if code == 0:
            return "done"
        if self._stopping.is_set():
            return "stopped"
        self.failed[stage] = f"{last_line(log)} (exit {code}, log {log})"
        self.console.print(f"[red]failed[/red] {stage.name}: {self.failed[stage]}", highlight=False, markup=True)
        return "failed"


def last_line(log: Path) -> str:
    """What a stage said last; the error message when it failed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("error:")]
    return next(reversed(errors or [line for line in lines if line] or ["it said nothing"]))


def collect(name: str, cells: list[Stage], failed: dict[Stage, str], root: Path) -> None:
    """Put an experiment's finished cells together under ROOT/EXPERIMENT, as the report reads them."""
    folders = [stage.folder for stage in cells if stage.finished and stage.folder is not None]
    target = root / name
    records = [record for folder in folders for record in read_records(folder / "records.csv")]
    write_records(target / "records.csv", records)
    told = [read_cell(folder) for folder in folders]
    write_cells(target / "cells.jsonl", told)
    for stale in (target / "curves").glob("*.json"):
        stale.unlink()
    for cell, folder in zip(told, folders, strict=True):
        write_text_atomically(target / "curves" / f"{cell.cell}.json", (folder / "curves.json").read_text())
    rows = [
        {"cell": stage.name, "command": shlex.join(["python", *stage.command[1:]]), "reason": failed[stage]}
        for stage in cells
        if stage in failed
    ]
    write_text_atomically(target / "failed.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def collect_traces(training: list[Stage], root: Path) -> None:
    """Put the loads of each setting's first finished run, as one chunk, under ROOT/train/traces/SETTING."""
    target = root / "train" / "traces"
    shutil.rmtree(target, ignore_errors=True)
    for stage in training:
        if stage.finished and stage.folder is not None:
            loads = read_loads(stage.folder / "trace")
            if not (target / loads.source.model).exists():
                writer = TraceWriter(target / loads.source.model, loads.source, loads.num_layers, loads.num_experts)
                writer.write_loads(loads.step, loads.tokens)


def reproduce(names: list[str], scale: str, outputs: str, logger: str, jobs: int) -> int:
    """Measure, collect, report; returns the number of stages that could not run."""
    found = plan(names, scale, outputs, logger)
    training, arms, cells = found.levels
    if compose("train", [f"scale={scale}"]).trainer.accelerator != "cpu":
        # a training run takes every device
        jobs = 1
    minutes = float(sum(load_experiment(name)["minutes"][scale] for name in names))
    runner = Runner(jobs, minutes, sum(map(len, found.levels)))
    print(
        f"{len(training)} training runs, {len(arms)} router arms and {len(cells)} cells at scale {scale}, declared "
        f"{minutes:g} minutes"
    )
    with runner.progress:
        for stages in found.levels:
            runner.run(stages)
    root = Path(outputs) / scale / "report"
    collect("train", training, runner.failed, root)
    collect("train_router", arms, runner.failed, root)
    collect_traces(training, root)
    for name in names:
        collect(name, [stage for stage in cells if stage.experiment == name], runner.failed, root)
    sections = [section(experiment) for experiment in read_results(root, CONF)]
    write(root, sections)
    print_verdicts(sections, runner.console)
    print(f"report: {root / 'report.html'}")
    return len(runner.failed)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", default="cpu", choices=SCALES)
    parser.add_argument("--experiments", nargs="*", default=[], metavar="NAME", help="default: all of conf/experiment")
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--logger", default="offline", help="a file name in conf/logger: offline, wandb or csv")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time, one thread each"
    )
    arguments = parser.parse_args()
    names = arguments.experiments or experiment_names()
    try:
        failed = reproduce(names, arguments.scale, arguments.outputs, arguments.logger, arguments.jobs)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue where this left off", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
