"""The trace folder survives kills and resumes, and refuses whatever it cannot read with one sentence."""

import inspect
import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traces.store
from traces.atomic import write_atomically
from traces.load import LoadTrace, TraceSource
from traces.store import TraceWriter, read_loads, read_manifest, read_routings

SOURCE = TraceSource("nano", "topk", 0, 8, 2, "abc", "0.1.0")
NUM_LAYERS, NUM_EXPERTS = 2, 4
TOKENS = np.random.default_rng(0).integers(0, 9, (30, NUM_LAYERS, NUM_EXPERTS))
ROUTINGS = np.random.default_rng(1).integers(-1, NUM_EXPERTS, (30, NUM_LAYERS, 6, 2))


def writer(folder: Path) -> TraceWriter:
    return TraceWriter(folder, SOURCE, NUM_LAYERS, NUM_EXPERTS)


def record(folder: Path, start: int, stop: int, chunk_steps: int = 4) -> TraceWriter:
    """Record as a run does that starts or resumes at `start` and is killed at `stop`."""
    run = writer(folder)
    run.rewind(start)
    for first in range(start, stop, chunk_steps):
        step = np.arange(first, min(first + chunk_steps, stop))
        run.write_loads(step, TOKENS[step])
        for sampled in step[step % 5 == 0].tolist():
            run.write_routing(sampled, ROUTINGS[sampled], np.zeros(6, np.int16))
    return run


def assert_recorded(folder: Path, stop: int) -> None:
    loads, routings = read_loads(folder), read_routings(folder)
    assert loads.source == routings.source == SOURCE
    np.testing.assert_array_equal(loads.step, np.arange(stop))
    np.testing.assert_array_equal(loads.tokens, TOKENS[:stop])
    np.testing.assert_array_equal(routings.step, np.arange(0, stop, 5))
    np.testing.assert_array_equal(routings.expert_indices, ROUTINGS[:stop:5])


def refused(folder: Path, reason: str, read=read_loads) -> None:
    """One ValueError: it names the path, states the reason and drags no other exception along."""
    with pytest.raises(ValueError, match=reason) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("chunk_steps", [1, 4, 30])
def test_round_trip(tmp_path, chunk_steps):
    record(tmp_path, 0, 30, chunk_steps)
    assert_recorded(tmp_path, 30)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4), st.integers(1, 7))
def test_a_resumed_trace_equals_an_uninterrupted_one(tmp_path_factory, runs, chunk_steps):
    folder, reached = tmp_path_factory.mktemp("trace"), 0
    for resume, stop in runs:
        start = min(resume, reached)
        record(folder, start, max(start, stop), chunk_steps)
        reached = max(start, stop)
    record(folder, reached, 30, chunk_steps)
    assert_recorded(folder, 30)


def test_a_kill_while_writing_leaves_what_was_written(tmp_path):
    record(tmp_path, 0, 20)
    (tmp_path / ".loads-00000020-00000023.npz.k1ll3d").write_bytes(b"PK\x03\x04half")
    assert_recorded(tmp_path, 20)
    record(tmp_path, 18, 30)
    assert_recorded(tmp_path, 30)


def test_a_lost_last_chunk_costs_only_its_own_steps(tmp_path):
    record(tmp_path, 0, 30)
    (tmp_path / "loads-00000028-00000029.npz").unlink()
    np.testing.assert_array_equal(read_loads(tmp_path).tokens, TOKENS[:28])


def test_a_chunk_lost_between_two_others_is_refused(tmp_path):
    record(tmp_path, 0, 30)
    (tmp_path / "loads-00000012-00000015.npz").unlink()
    refused(tmp_path, r"the steps between 11 and 16 are missing \(a chunk was lost\); record the trace again")


def test_steps_recorded_now_and_then_are_no_gap(tmp_path):
    run = writer(tmp_path)
    for first in (0, 8, 16):
        run.write_loads(np.array([first, first + 4]), TOKENS[[first, first + 4]])
    np.testing.assert_array_equal(read_loads(tmp_path).step, np.arange(0, 21, 4))


def test_a_kill_inside_rewind_is_mended_by_resuming_again(tmp_path, monkeypatch):
    record(tmp_path, 0, 20, chunk_steps=20)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            writer(tmp_path).rewind(18)
    refused(tmp_path, "steps must increase strictly")
    record(tmp_path, 18, 30)
    assert_recorded(tmp_path, 30)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_three_lines_of_numpy_read_a_trace(tmp_path, monkeypatch):
    record(tmp_path / "trace", 0, 30)
    monkeypatch.chdir(tmp_path)
    lines = textwrap.dedent(inspect.getdoc(traces.store).split("Three lines read one:")[1])
    found = {"Path": Path, "np": np}
    exec(lines, found)
    np.testing.assert_array_equal(found["tokens"], TOKENS)
    np.testing.assert_array_equal(found["proportion"], read_loads(tmp_path / "trace").proportion)
    assert lines.strip() in Path(traces.store.__file__, "../../docs/trace-format.md").resolve().read_text()


@pytest.mark.parametrize(("kind", "read"), [("loads-", read_loads), ("routing-", read_routings)])
def test_a_chunk_cut_anywhere_is_refused(tmp_path, kind, read):
    record(tmp_path, 0, 4)
    file = next(tmp_path.glob(f"{kind}*.npz"))
    whole = file.read_bytes()
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        refused(tmp_path, "truncated or not a trace chunk", read)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255), manifest=st.booleans())
def test_a_damaged_byte_is_harmless_or_refused(tmp_path, position, flip, manifest):
    folder = tmp_path / "trace"
    if not folder.exists():
        record(folder, 0, 4)
    file = folder / "manifest.json" if manifest else next(folder.glob("loads-*.npz"))
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[position % len(whole)] ^= flip
    file.write_bytes(damaged)
    try:
        found = read_loads(folder)
    except ValueError as error:
        # any other kind of error fails the test
        message = str(error)
    else:
        message = str(folder)
        np.testing.assert_array_equal(found.tokens, TOKENS[:4])
    file.write_bytes(whole)
    assert str(folder) in message


def test_a_damaged_manifest_length_is_refused(tmp_path):
    record(tmp_path, 0, 4)
    whole = (tmp_path / "manifest.json").read_bytes().strip()
    for length in range(len(whole)):
        (tmp_path / "manifest.json").write_bytes(whole[:length])
        refused(tmp_path, "not a JSON manifest", read_manifest)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema 2, this version reads schema 1"),
        ({"schema": None}, "schema None"),
        ({"format": "zarr"}, "not a moelab-trace manifest"),
        ({"num_experts": 0}, r"got \(2, 0\)"),
        ({"num_layers": "two"}, r"got \('two', 4\)"),
        ({"num_layers": 3}, r"the manifest says \(3, 4\)"),
        ({"source": {"model": "nano"}}, "exactly the fields"),
        ({"source": {**SOURCE.__dict__, "seed": "0"}}, "source.seed must be int, got '0'"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, changes, reason):
    record(tmp_path, 0, 4)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(tmp_path, reason)


def test_a_folder_without_a_trace_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "manifest.json is missing")
    refused(tmp_path, "manifest.json is missing")
    (tmp_path / "manifest.json").write_text("[1, 2]")
    refused(tmp_path, "not a moelab-trace manifest")
    (tmp_path / "manifest.json").unlink()
    writer(tmp_path)
    refused(tmp_path, "no recorded step yet")
    refused(tmp_path, "no routing was sampled", read_routings)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("name", "arrays", "reason"),
    [
        ("loads-00000003-00000005.npz", {"step": [3, 5], "tokens": TOKENS[:2]}, "after step 3"),
        ("loads-00000004-00000005.npz", {"step": [4, 5], "tokens": TOKENS[:3]}, r"counts \(3, 2, 4\)"),
        ("loads-00000004-00000004.npz", {"step": [4], "tokens": TOKENS[:1, :1]}, r"counts \(1, 1, 4\)"),
        ("loads-00000004-00000005.npz", {"step": [6, 7], "tokens": TOKENS[:2]}, "not those of its name"),
        ("loads-00000004-00000004.npz", {"step": [4], "tokens": TOKENS[:1] * 0.5}, "must hold integers"),
        ("loads-00000004-00000004.npz", {"step": [4]}, "truncated or not a trace chunk"),
        ("loads-last.npz", {"step": [4], "tokens": TOKENS[:1]}, "named loads-FIRST-LAST.npz"),
    ],
)
def test_a_foreign_chunk_is_refused(tmp_path, name, arrays, reason):
    record(tmp_path, 0, 4)
    np.savez(tmp_path / name, **arrays)
    refused(tmp_path, reason)


@pytest.mark.parametrize(
    ("name", "indices", "device", "reason"),
    [
        ("routing-00000005.npz", ROUTINGS[5, :1], np.zeros(6, int), "differ in shape"),
        ("routing-00000005.npz", ROUTINGS[5], np.ones(6, int), "differ in shape or in source_device"),
        ("routing-00000000.npz", ROUTINGS[5] + 4, np.zeros(6, int), r"must lie in -1\.\.3"),
        (
            "routing-00000000.npz",
            ROUTINGS[0, :1],
            np.zeros(6, int),
            "routings of 1 layers, the manifest says 2",
        ),
        ("routing-first.npz", ROUTINGS[0], np.zeros(6, int), "named routing-STEP.npz"),
    ],
)
def test_a_foreign_routing_is_refused(tmp_path, name, indices, device, reason):
    record(tmp_path, 0, 4)
    np.savez(tmp_path / name, expert_indices=indices, source_device=device)
    refused(tmp_path, reason, read_routings)


def test_an_array_file_and_a_pickle_are_no_chunks(tmp_path):
    record(tmp_path, 0, 4)
    file = next(tmp_path.glob("loads-*.npz"))
    with file.open("wb") as opened:
        np.save(opened, TOKENS)
    refused(tmp_path, "truncated or not a trace chunk")
    np.savez(file, step=np.array([{}], object), tokens=TOKENS)
    refused(tmp_path, "truncated or not a trace chunk")


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: TraceWriter(folder, replace(SOURCE, seed=1), NUM_LAYERS, NUM_EXPERTS),
        lambda folder: TraceWriter(folder, SOURCE, NUM_LAYERS + 1, NUM_EXPERTS),
        lambda folder: TraceWriter(folder, SOURCE, NUM_LAYERS, NUM_EXPERTS - 1),
    ],
)
def test_a_trace_of_another_source_is_not_continued(tmp_path, other):
    record(tmp_path, 0, 4)
    refused(tmp_path, "choose another folder", other)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("step", "tokens", "reason"),
    [
        ([3, 4], TOKENS[:2], r"rewind\(3\)"),
        ([4, 4], TOKENS[:2], "after step 4"),
        ([4, 5], TOKENS[:3], r"got \(2,\) and \(3, 2, 4\)"),
        ([4], TOKENS[:1, :, :2], r"of \(2, 4\) \(L, E\)"),
        ([4], -TOKENS[:1] - 1, "negative"),
        ([], TOKENS[:0], "0 steps"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, step, tokens, reason):
    record(tmp_path, 0, 4)
    refused(tmp_path, reason, lambda folder: writer(folder).write_loads(np.array(step, int), tokens))
    assert_recorded(tmp_path, 4)


def test_a_chunk_is_a_trace_of_its_own(tmp_path):
    writer(tmp_path).write_loads(np.array([7]), TOKENS[:1])
    found = read_loads(tmp_path)
    assert isinstance(found, LoadTrace)
    assert found.step.tolist() == [7]
