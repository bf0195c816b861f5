"""The driver: one stage's failure does not stop the others, finished stages are cached, the report follows."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plan import Stage, plan
from benchmarks.record import Cell, Record, read_cells, read_records, write_records
from benchmarks.reproduce import Runner, collect, collect_traces, last_line
from traces.load import TraceSource
from traces.store import TraceWriter, read_loads


def stage(tmp_path: Path, name: str, code: str) -> Stage:
    return Stage("toy", name, (sys.executable, "-c", code), name, str(tmp_path), "smoke")


def finish(tmp_path: Path, name: str, value: float) -> Path:
    from dataclasses import asdict
    from json import dumps

    folder = tmp_path / "smoke" / "toy" / f"label-{name}"
    folder.mkdir(parents=True)
    write_records(folder / "records.csv", [Record("toy", "smoke", "cpu", "s", 0, "-", "figure", value, name)])
    (folder / "curves.json").write_text('{"curves": []}')
    cell = Cell(name, "toy", {}, "abc", {}, "machine", "data", 1.0, "")
    (folder / "cell.json").write_text(dumps(asdict(cell)))
    return folder


def test_a_failing_stage_says_why_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = stage(tmp_path, "bad", "print('noise'); raise SystemExit('error: K = 9 exceeds E = 8')")
    good = stage(tmp_path, "good", f"open(r'{tmp_path}/ran', 'w').close()")
    runner = Runner(jobs=1, minutes=1.0, total=2)
    runner.run([bad, good])
    assert (tmp_path / "ran").exists()
    assert list(runner.failed) == [bad]
    assert runner.failed[bad].startswith("error: K = 9 exceeds E = 8 (exit 1, log ")
    assert "K = 9 exceeds E = 8" in capfd.readouterr().out.replace("\n", " ")


def test_a_stage_that_measures_seconds_runs_alone_after_the_others(tmp_path: Path) -> None:
    # each says how many others of them run when it begins
    code = (
        "import time, pathlib; here = pathlib.Path(r'{0}'); "
        "(here / '{1}.told').write_text(' '.join(sorted(p.stem for p in here.glob('*.runs')))); "
        "(here / '{1}.runs').touch(); time.sleep(0.5); (here / '{1}.runs').unlink()"
    )
    names = ["timed0", "timed1", "shared0", "shared1"]
    stages = [replace(stage(tmp_path, name, code.format(tmp_path, name)), alone="timed" in name) for name in names]
    runner = Runner(jobs=4, minutes=1.0, total=4)
    runner.run(stages)
    assert not runner.failed
    assert [(tmp_path / f"timed{number}.told").read_text() for number in (0, 1)] == ["", ""]
    begun = {name: (tmp_path / f"{name}.told").stat().st_mtime for name in names}
    assert max(begun["shared0"], begun["shared1"]) < begun["timed0"] < begun["timed1"]


def test_only_what_has_a_ground_is_timed() -> None:
    cells = plan(["paper2_walltime", "paper2_volume"], "smoke", "outputs", "csv").cells
    assert {cell.experiment for cell in cells if cell.alone} == {"paper2_walltime"}


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    finish(tmp_path, "done", 1.0)
    cached = stage(tmp_path, "done", f"open(r'{tmp_path}/ran', 'w').close()")
    Runner(jobs=1, minutes=1.0, total=1).run([cached])
    assert cached.finished
    assert not (tmp_path / "ran").exists()


def test_collect_gathers_finished_cells_and_lists_failures(tmp_path: Path) -> None:
    stages = [stage(tmp_path, name, "") for name in ("one", "two", "bad")]
    finish(tmp_path, "one", 1.0)
    finish(tmp_path, "two", 2.0)
    root = tmp_path / "report"
    collect("toy", stages, {stages[2]: "because"}, root)
    assert [row.value for row in read_records(root / "toy" / "records.csv")] == [1.0, 2.0]
    assert [cell.cell for cell in read_cells(root / "toy" / "cells.jsonl")] == ["one", "two"]
    assert "because" in (root / "toy" / "failed.jsonl").read_text()
    # what an earlier, wider run left there is no part of this one
    (root / "toy" / "curves" / "stale.json").write_text("{}")
    collect("toy", stages[:1], {}, root)
    assert [path.stem for path in (root / "toy" / "curves").glob("*.json")] == ["one"]


def test_first_run_of_a_setting_gives_its_loads(tmp_path: Path) -> None:
    stages = []
    for seed in (0, 1):
        source = TraceSource("nano", "TopK", seed, 4, 1, "text", "0")
        writer = TraceWriter(finish(tmp_path, f"run{seed}", 1.0) / "trace", source, 1, 2)
        for step in (0, 1):
            writer.write_loads(np.array([step]), np.array([[[seed, 4 - seed]]]))
        stages.append(stage(tmp_path, f"run{seed}", ""))
    for _ in range(2):  # a second collection replaces the first
        collect_traces(stages, tmp_path / "report")
    (folder,) = (tmp_path / "report" / "train" / "traces").iterdir()
    assert read_loads(folder).source.seed == 0
    assert len(list(folder.glob("loads-*.npz"))) == 1


def test_last_line_prefers_the_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nerror: the reason\nwandb: synced\n")
    assert last_line(log) == "error: the reason"
    log.write_text("\n\n")
    assert last_line(log) == "it said nothing"


@pytest.mark.slow
def test_the_whole_suite_at_smoke_scale_and_again_from_its_cache(tmp_path: Path, run_module) -> None:
    arguments = ("--scale", "smoke", "--outputs", str(tmp_path), "--jobs", "2")
    first = run_module("reproduce", *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    page = (tmp_path / "smoke" / "report" / "report.html").read_text()
    assert "not comparable at this scale" in page
    again = run_module("reproduce", *arguments)
    assert again.returncode == 0
    stages = [line for line in again.stdout.splitlines() if line.lstrip().startswith(("cached", "done", "failed"))]
    assert stages
    assert all(line.lstrip().startswith("cached") for line in stages)
    assert (tmp_path / "smoke" / "report" / "report.html").read_text() == page
