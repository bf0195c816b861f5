"""What is written is read back, and a damaged file is named."""

import math
from pathlib import Path

import pytest

from benchmarks.record import Cell, Record, read_cells, read_records, write_cells, write_records


def record(**changes: object) -> Record:
    columns = {"experiment": "e", "scale": "cpu", "ground": "cpu", "setting": "nano16", "seed": 3}
    rest = {"method": 'a "quoted", name', "metric": "relative_error", "value": 0.0125, "cell": "c0ffee"}
    return Record(**{**columns, **rest, **changes})


def cell(**changes: object) -> Cell:
    columns = {"cell": "c0ffee", "experiment": "e", "config": {"seed": 3, "nested": {"a": [1, 2.5, None]}}}
    rest = {
        "commit": "abc",
        "versions": {"numpy": "2"},
        "machine": "m",
        "data_fingerprint": "d",
        "seconds": 1.5,
    }
    return Cell(**{**columns, **rest, "run_id": "r", **changes})


def test_records_survive_a_file(tmp_path: Path):
    records = [record(horizon=1000, state="stable", layer="2", floor=0.01, floor_empirical=0.011, count=40)]
    write_records(tmp_path / "new" / "records.csv", records)
    assert read_records(tmp_path / "new" / "records.csv") == records


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.0, -1.0, 1.5e-9, 123456.0])
def test_values_survive_a_file(tmp_path: Path, value: float):
    write_records(tmp_path / "r.csv", [record(value=value)])
    assert read_records(tmp_path / "r.csv")[0].value == value


def test_no_floor_is_nan(tmp_path: Path):
    write_records(tmp_path / "r.csv", [record()])
    read = read_records(tmp_path / "r.csv")[0]
    assert math.isnan(read.floor)
    assert math.isnan(read.floor_empirical)


def test_a_table_without_rows_is_read_as_such(tmp_path: Path):
    write_records(tmp_path / "r.csv", [])
    assert read_records(tmp_path / "r.csv") == []


def test_a_missing_column_is_named_even_if_it_has_a_default(tmp_path: Path):
    path = tmp_path / "r.csv"
    write_records(path, [record()])
    path.write_text(path.read_text().replace("horizon", "horizons"))
    with pytest.raises(ValueError, match=r"r\.csv.*horizon"):
        read_records(path)


def test_a_column_that_is_no_number_names_the_file(tmp_path: Path):
    path = tmp_path / "r.csv"
    write_records(path, [record()])
    path.write_text(path.read_text().replace("0.0125", "small"))
    with pytest.raises(ValueError, match=r"r\.csv.*small"):
        read_records(path)


def test_a_cut_row_names_the_file(tmp_path: Path):
    path = tmp_path / "r.csv"
    write_records(path, [record()])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"r\.csv"):
        read_records(path)


def test_cells_survive_a_file(tmp_path: Path):
    cells = [cell(), cell(cell="decade", recorded="2026-01-31")]
    write_cells(tmp_path / "cells.jsonl", cells)
    assert read_cells(tmp_path / "cells.jsonl") == cells


def test_cells_written_before_days_were_noted_are_read(tmp_path: Path):
    path = tmp_path / "cells.jsonl"
    write_cells(path, [cell()])
    path.write_text(path.read_text().replace(', "recorded": ""', ""))
    assert read_cells(path) == [cell()]


@pytest.mark.parametrize("text", ["{", '{"cell": "c"}', "[1]"])
def test_a_damaged_list_of_cells_is_named(tmp_path: Path, text: str):
    (tmp_path / "cells.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"cells\.jsonl"):
        read_cells(tmp_path / "cells.jsonl")
