"""A cell is measured once, says what went wrong in one line, and tells where its figures come from."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.cell import Measurement, fingerprint, machine, run_cell, user_errors, versions
from benchmarks.record import Record, read_records


def config(tmp_path: Path, **more: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "experiment": "toy",
            "entry": "toy",
            "scale": "smoke",
            "outputs": str(tmp_path),
            "logger": {"_target_": "benchmarks.tracking.CsvTracker"},
            **more,
        }
    )


def one_row(cfg: DictConfig, folder: Path, tracker: Any) -> Measurement:
    row = Record("toy", "smoke", "cpu", "s", 0, "-", "figure", 1.5, "")
    return Measurement([row], [{"figure": "f"}], "data")


def test_cell_writes_records_curves_and_provenance(tmp_path: Path) -> None:
    folder = run_cell(config(tmp_path), ["a", "b"], one_row)
    cell = json.loads((folder / "cell.json").read_text())
    assert folder.name.startswith("a-b-")
    assert [row.cell for row in read_records(folder / "records.csv")] == [cell["cell"]]
    assert json.loads((folder / "curves.json").read_text()) == {"curves": [{"figure": "f"}]}
    assert cell["data_fingerprint"] == "data"
    assert cell["versions"]["torch"] == versions()["torch"] != "absent"


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"ops": True, "kernels": True, "gemm": False}, "native: ops, kernels"),
        ({"ops": False, "kernels": False, "gemm": False}, "native: nothing, torch stand-ins"),
    ],
)
def test_a_cell_tells_what_of_megablocks_is_native(parts, told, monkeypatch):
    monkeypatch.setattr("benchmarks.cell.version", lambda package: "1.0")
    monkeypatch.setattr("models.megablocks.native_parts", lambda: parts)
    assert versions()["megablocks"] == f"1.0, {told}"


def test_finished_cell_is_not_measured_again(tmp_path: Path) -> None:
    def never(*_: Any) -> Measurement:
        raise AssertionError("measured twice")

    folder = run_cell(config(tmp_path), ["a"], one_row)
    assert run_cell(config(tmp_path), ["a"], never) == folder


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    computed = []
    folder = run_cell(config(tmp_path), ["a"], lambda *_: computed.append(1) or Measurement())
    assert computed == [1]
    assert not folder.exists()


def test_interrupted_cell_is_measured_again(tmp_path: Path) -> None:
    folder = run_cell(config(tmp_path), ["a"], one_row)
    (folder / "cell.json").unlink()
    run_cell(config(tmp_path), ["a"], one_row)
    assert (folder / "cell.json").exists()


@pytest.mark.parametrize("fault", [ValueError("K = 9 exceeds E = 8"), FileNotFoundError("no corpus"), ImportError("x")])
def test_user_s_fault_is_one_line_and_leaves_no_result(tmp_path: Path, fault: Exception) -> None:
    def wrong(*_: Any) -> Measurement:
        raise fault

    with pytest.raises(SystemExit, match=f"^error: {fault}$"), user_errors():
        run_cell(config(tmp_path), ["a"], wrong)
    assert not list(tmp_path.rglob("cell.json"))


def test_the_innermost_cause_is_told(tmp_path: Path) -> None:
    def wrong(*_: Any) -> Measurement:
        instantiate({"_target_": "predictors.windows.SlidingWindow", "window": 0})
        raise AssertionError("not reached")

    with pytest.raises(SystemExit, match=r"^error: .*window.* 0"), user_errors():
        run_cell(config(tmp_path), ["a"], wrong)


def test_a_cell_without_a_figure_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        run_cell(config(tmp_path), ["a"], lambda *_: Measurement())
    assert not list(tmp_path.rglob("cell.json"))


def test_fingerprint_follows_what_is_measured(tmp_path: Path) -> None:
    plain = fingerprint(config(tmp_path))
    assert fingerprint(config(tmp_path, title="other", expect=[1], order=2)) == plain
    assert fingerprint(config(tmp_path, window=3)) != plain


def test_machine_does_not_name_the_node() -> None:
    import platform

    assert platform.node() not in machine()
    assert "cores" in machine()
