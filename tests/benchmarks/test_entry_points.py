"""The analysis entry points on a trace of one's own, end to end as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from benchmarks.record import Record, read_records
from traces.store import read_loads

Run = Callable[..., CompletedProcess[str]]
SMALL = ("detector.window=20", "backtest.horizons=[20,50]", "backtest.first=40", "backtest.stride=50")


def records_of(outputs: Path) -> list[Record]:
    (path,) = outputs.rglob("records.csv")
    return read_records(path)


def test_states_of_a_foreign_trace(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    small = ("detector.window=20", "windows=[5,20]", "sensitivity.windows=[20,40]")
    done = run_module("load_states", f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", *small)
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert {(row.setting, row.scale) for row in records} == {("toy", "foreign")}, "named by its own manifest"
    rows = {row.metric: row.value for row in records if row.layer == "all" and row.method == "-"}
    # relaxation with a time constant of 30 steps: fluctuates first, stable well before the end
    assert rows["range_20_fall"] > 1.5
    assert rows["stable_share"] == 1.0
    assert 60 < rows["stable_step"] < 300


def test_forecast_of_a_foreign_trace(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    common = (f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", *SMALL)
    done = run_module("predict_loads", "predictor=sw_avg_50", *common)
    assert done.returncode == 0, done.stderr
    stable = [r for r in records_of(tmp_path) if r.state == "stable" and r.layer == "all" and r.horizon == 50]
    errors = {row.metric: row for row in stable}
    assert {row.method for row in stable} == {"sw_avg_50"}
    # the toy's loads are independent draws once settled, so SW_Avg comes within a fifth of the floor
    assert 0.95 < errors["relative_error"].value / errors["relative_error"].floor < 1.2
    assert np.isnan(errors["relative_error"].floor_empirical), "a foreign trace has no repeated batches"


def test_placement_on_another_frameworks_dump(run_module: Run, tmp_path: Path) -> None:
    chosen_SLTK = np.random.default_rng(0).permuted(np.tile(np.arange(8), (200, 2, 16, 1)), axis=-1)[..., :2]
    rows = [
        {"step": step, "block": "decoder", "layer": layer, "rank": 0, "topk": 2, "top_indices": chosen.tolist()}
        for step, chosen_LTK in enumerate(chosen_SLTK)
        for layer, chosen in enumerate(chosen_LTK)
    ]
    dump = tmp_path / "router_trace_rank0.jsonl"
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (f"outputs={tmp_path}", "logger=csv", "predictor=sw_avg_10", "replay.every=50")
    done = run_module("place_experts", f"trace.path={dump}", "+trace.options.num_experts=8", *common)
    assert done.returncode == 0, done.stderr
    assert {row.setting for row in records_of(tmp_path)} == {"router_trace_rank0"}
    refused = run_module("place_experts", f"trace.path={dump}", "+trace.options.experts=8", *common)
    assert refused.returncode != 0
    assert "has no use for experts; it takes" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace.path=/nowhere"], "error: /nowhere: no trace there"),
        (["trace.setting=micro8", "trace.seed=77"], "this run is not recorded yet; run `python -m benchmarks.train"),
        (["trace.pathh=x"], "pathh"),
        (["predictor=lstm", "trace.path=TRACE"], "error: Lstm is trained on another run"),
        (["trace.path=TRACE", "backtest.first=399"], "exceeds the 400 recorded steps"),
        (["trace.path=TRACE", "predictor.window=0"], "window"),
        (["trace.path=TRACE", "logger=offline", "logger.mode=maybe"], "must be offline or online, got 'maybe'"),
    ],
)
def test_bad_input_is_one_clear_line(
    run_module: Run, trace_folder: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [argument.replace("TRACE", str(trace_folder)) for argument in arguments]
    done = run_module("predict_loads", f"outputs={tmp_path}", *given)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("records.csv"))


def test_a_trace_recorded_again_is_measured_again(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    common = (f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", *SMALL)
    assert run_module("predict_loads", *common).returncode == 0
    assert "already measured" in run_module("predict_loads", *common).stdout
    loads = read_loads(trace_folder)
    (chunk,) = trace_folder.glob("loads-*.npz")
    np.savez(chunk, step=loads.step, tokens=loads.tokens[::-1])
    assert "already measured" not in run_module("predict_loads", *common).stdout
    assert len(list(tmp_path.rglob("records.csv"))) == 2


def test_truncated_trace_is_named_and_earlier_results_stay(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    common = (f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", *SMALL)
    assert run_module("predict_loads", *common).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("records.csv")}
    (chunk,) = trace_folder.glob("loads-*.npz")
    chunk.write_bytes(chunk.read_bytes()[:-100])
    done = run_module("predict_loads", "predictor=last_value", *common)
    assert done.returncode != 0
    assert f"{chunk}: truncated or not a trace chunk" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("records.csv")} == before
