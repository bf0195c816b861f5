"""Publishing replaces whole experiments or nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.publish import main, replace_folder
from benchmarks.record import Record, read_records, write_records


def write(folder: Path, value: float, scale: str = "cpu") -> None:
    row = Record(folder.name, scale, "cpu", "nano16", 0, "-", "loss", value, "c1")
    write_records(folder / "records.csv", [row])


def value(folder: Path) -> float:
    return read_records(folder / "records.csv")[0].value


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two finished experiments, beside published older ones."""
    folder = tmp_path / "outputs" / "cpu" / "report"
    for name in ("one", "two"):
        write(folder / name, 2.0)
        write(tmp_path / "results" / name, 1.0)
    write(tmp_path / "results" / "other", 1.0)
    (tmp_path / "results" / "one" / "stale.txt").write_text("of the older run")
    return folder


def publish(tmp_path: Path, *arguments: str) -> None:
    folders = {"--outputs": tmp_path / "outputs", "--results": tmp_path / "results", "--conf": tmp_path}
    main(["cpu", *arguments, *(str(part) for pair in folders.items() for part in pair)])


def test_replaces_the_named_folder_whole_and_no_other(tmp_path: Path, source: Path):
    publish(tmp_path, "one")
    results = tmp_path / "results"
    assert [value(results / name) for name in ("one", "two", "other")] == [2.0, 1.0, 1.0]
    assert not (results / "one" / "stale.txt").exists()
    assert sorted(path.name for path in results.iterdir()) == [
        "REPORT.md",
        "one",
        "other",
        "report.html",
        "two",
    ]


def test_without_names_all_that_are_there(tmp_path: Path, source: Path):
    publish(tmp_path)
    assert [value(tmp_path / "results" / name) for name in ("one", "two", "other")] == [2.0, 2.0, 1.0]


def test_the_first_time_there_are_no_results_yet(tmp_path: Path, source: Path):
    shutil.rmtree(tmp_path / "results")
    publish(tmp_path, "one")
    assert "one" in (tmp_path / "results" / "REPORT.md").read_text(encoding="utf-8")


def test_the_source_stays(tmp_path: Path, source: Path):
    before = tree(source)
    publish(tmp_path)
    assert tree(source) == before


def spoil_records(folder: Path) -> None:
    write_records(folder / "records.csv", [])


def spoil_scale(folder: Path) -> None:
    write(folder, 2.0, scale="smoke")


def spoil_cell(folder: Path) -> None:
    failed = {"cell": "nano16-arima", "command": "python", "reason": "no statsforecast"}
    (folder / "failed.jsonl").write_text(json.dumps(failed))


def spoil_table(folder: Path) -> None:
    (folder / "records.csv").write_text("nonsense")


@pytest.mark.parametrize("names", [("one", "two"), ()])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_records, "no records"),
        (spoil_scale, "smoke"),
        (spoil_cell, "nano16-arima: no statsforecast"),
        (spoil_table, "not a table"),
    ],
)
def test_refuses_all_if_one_is_not_finished(tmp_path: Path, source: Path, spoil, said: str, names: tuple[str, ...]):
    before = tree(tmp_path / "results")
    spoil(source / "two")
    with pytest.raises(SystemExit, match="is as it was") as refusal:
        publish(tmp_path, *names)
    assert said in str(refusal.value)
    assert tree(tmp_path / "results") == before


def test_refuses_what_is_not_there(tmp_path: Path, source: Path):
    before = tree(tmp_path / "results")
    with pytest.raises(SystemExit, match="three: no records"):
        publish(tmp_path, "one", "three")
    assert tree(tmp_path / "results") == before


def test_failed_cells_can_be_allowed(tmp_path: Path, source: Path):
    spoil_cell(source / "two")
    publish(tmp_path, "two", "--allow-failed")
    assert "no statsforecast" in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")


def test_runs_as_a_command(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.publish", "cpu", "--outputs", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")


def test_refuses_where_there_is_nothing(tmp_path: Path):
    with pytest.raises(SystemExit, match="no such results folder"):
        publish(tmp_path)


def test_refuses_if_what_is_published_cannot_be_read(tmp_path: Path, source: Path):
    spoil_table(tmp_path / "results" / "other")
    with pytest.raises(SystemExit, match="other"):
        publish(tmp_path, "one")
    assert value(tmp_path / "results" / "one") == 1.0


def test_a_failed_move_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "new", 2.0)
    write(tmp_path / "old", 1.0)
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "new", tmp_path / "old")
    assert value(tmp_path / "old") == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
