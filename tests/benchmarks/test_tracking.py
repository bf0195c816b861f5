"""W&B without an account: a run a cell, its id kept for a resume, everything measured in its summary."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cell import ROOT, Measurement
from benchmarks.record import Record, read_records
from benchmarks.tracking import CsvTracker, WandbTracker, metric_key

ROW = Record(
    "toy", "smoke", "cpu", "nano", 0, "ema", "relative_error", 0.25, "c", horizon=100, state="stable", layer="2"
)


def inspect(run: Path) -> dict:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(run)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_offline_run_holds_config_group_tags_and_figures(tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text("a\n1\n")
    for _ in range(2):  # the second start continues the first, as a resumed cell does
        tracker = WandbTracker("moelab-test", "offline")
        run_id = tracker.start(tmp_path, ["nano", "seed0", "ema"], "toy", "predict_loads", {"window": 3})
        tracker.finish(tmp_path, Measurement([ROW]))
        # offline folders are named by the second: no cell is resumed within one
        time.sleep(1.1)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert {run.name.rsplit("-", 1)[1] for run in runs} == {run_id} == {(tmp_path / "wandb_id").read_text()}
    told = json.dumps(inspect(runs[-1]))
    assert '"window": 3' in told
    assert "relative_error/ema/horizon_100/stable/layer_2" in told
    assert "0.25" in told


def test_offline_run_holds_the_cell_s_figures(tmp_path: Path) -> None:
    line = {"figure": "drift", "panel": "all layers", "series": "layer 0", "setting": "nano", "seed": 0}
    tracker = WandbTracker("moelab-test", "offline")
    tracker.start(tmp_path, ["nano"], "toy", "load_states", {})
    tracker.finish(tmp_path, Measurement([ROW], [{**line, "x": [0.0, 1.0, 2.0], "y": [0.3, 0.2, 0.1]}]))
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/figures/drift*.html")
    assert "<svg" in page.read_text()


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="must be offline or online, got 'maybe'"):
        WandbTracker("p", "maybe")


def test_csv_tracker_needs_no_service(tmp_path: Path) -> None:
    tracker = CsvTracker()
    assert tracker.start(tmp_path / "cell", [], "e", "m", {}) == ""
    logger = tracker.lightning_logger(tmp_path / "cell")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    assert "loss" in (tmp_path / "cell" / "metrics" / "metrics.csv").read_text()


def test_key_leaves_out_what_is_at_its_default() -> None:
    assert metric_key(Record("e", "s", "g", "x", 0, "-", "stable_share", 1.0, "c")) == "stable_share"


def test_every_published_metric_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    first_columns = re.findall(r"^\| (`[^|]+`) \|", text, re.M)
    known = [
        re.sub("DOMAIN|TASK|ACCOUNTING", r"\\w+", name.replace("WINDOW", r"\d+"))
        for column in first_columns
        for name in re.findall("`([^`]+)`", column)
    ]
    for path in (ROOT / "results").glob("*/records.csv"):
        for name in {record.metric for record in read_records(path)}:
            assert any(re.fullmatch(pattern, name) for pattern in known), f"docs/metrics.md lacks {name}"
