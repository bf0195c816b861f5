"""Expectations are fixed before a run: a report says so when they were not."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from benchmarks.expectation import expectations_fingerprint
from benchmarks.record import Cell, Record, write_records
from benchmarks.results import read_experiment

ITEM = {"id": "a", "claim": "c", "source": "ours", "published": "-", "metric": "m", "select": {"method": "-"}}
JUDGED = {**ITEM, "relation": "at_most", "target": 1.0, "format": "number"}


@pytest.mark.parametrize(
    ("key", "value", "differs"),
    [
        ("claim", "reworded", False),
        ("source", "ours", False),
        ("target", 2.0, True),
        ("relation", "at_least", True),
    ],
)
def test_fingerprint_follows_what_is_judged_not_how_it_is_worded(key: str, value: object, differs: bool) -> None:
    changed = expectations_fingerprint([{**JUDGED, key: value}])
    assert (changed != expectations_fingerprint([JUDGED])) == differs


def write(tmp_path: Path, target_when_measured: float) -> Path:
    measured = expectations_fingerprint([{**JUDGED, "target": target_when_measured}])
    cell = Cell("c", "toy", {}, "abc", {}, "machine", "data", 1.0, "", "2026-01-31", measured)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "cells.jsonl").write_text(json.dumps(asdict(cell)) + "\n")
    write_records(folder / "records.csv", [Record("toy", "full", "cpu", "s", 0, "-", "m", 0.5, "c")])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "toy.yaml").write_text(yaml.safe_dump({"expect": [JUDGED], "notes": ["a note"]}))
    return folder


def test_a_target_changed_after_the_run_is_told(tmp_path: Path) -> None:
    notes = read_experiment(write(tmp_path, target_when_measured=2.0), tmp_path).notes
    assert notes[0] == "a note"
    assert notes[1].startswith("1 of 1 cells were measured before the present expectations were written")


def test_expectations_that_stood_before_the_run_need_no_note(tmp_path: Path) -> None:
    assert read_experiment(write(tmp_path, target_when_measured=1.0), tmp_path).notes == ("a note",)
