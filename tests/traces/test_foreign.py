"""Which reader a dump gets, and what every reader does with damage: one `ValueError` with the file's name."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces.foreign import FORMATS, read_foreign
from traces.load import LoadTrace
from traces.readers.assemble import in_steps, load_trace, traces_of_choices
from traces.store import TraceWriter

# (T, L, K) and (L, T, K) of E = 6
CHOSEN_TLK = np.array([[[0, 3], [1, 5]], [[2, 3], [4, 1]], [[5, 0], [2, 3]]])
CHOSEN_LTK = CHOSEN_TLK.swapaxes(0, 1)
LOADS_LE = [[2, 0, 1, 2, 0, 1], [0, 2, 1, 1, 1, 1]]


def write_sglang(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    map_LP = torch.arange(6).repeat(2, 1)
    record = {"forward_pass_id": 4, "rank": 0, "gatherer_key": "primary", "topk_ids_of_layer": torch.tensor(CHOSEN_LTK)}
    record["global_physical_count"] = torch.tensor(LOADS_LE)
    file = folder / "expert_distribution_recorder_1.5_0.pt"
    torch.save({"records": [record], "last_physical_to_logical_map": map_LP}, file)
    return file


def write_megatron(folder: Path) -> Path:
    file = folder / "router_trace_rank0.jsonl"
    rows = [
        {"step": 4, "block": "decoder", "layer": layer, "rank": 0, "topk": 2, "top_indices": chosen.tolist()}
        for layer, chosen in enumerate(CHOSEN_LTK)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_vllm(folder: Path) -> Path:
    file = folder / "routed_experts.npy"
    np.save(file, CHOSEN_TLK.astype(np.int32))
    return file


def write_tensorrt_llm(folder: Path) -> Path:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    (folder / "meta_info.json").write_text(json.dumps({"num_experts": 6, "num_experts_per_token": 2}))
    file = folder / "rank0.safetensors"
    save_file({f"4_{layer}": np.array(count) for layer, count in enumerate(LOADS_LE)}, file)
    return file


def write_flame(folder: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    layer = np.repeat([0, 1], 3).tolist()
    columns = {"indices": CHOSEN_LTK.reshape(6, 2).tolist(), "scores": [[0.1] * 6] * 6, "layer": layer}
    file = folder / "routing.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    return file


def write_hugging_face(folder: Path) -> Path:
    logits = np.zeros((2, 3, 6), np.float32)
    np.put_along_axis(logits, CHOSEN_LTK, np.array([2.0, 1.0], np.float32), axis=-1)
    file = folder / "logits.npz"
    np.savez(file, router_logits=logits, top_k=2)
    return file


def write_hugging_face_safetensors(folder: Path) -> Path:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    with np.load(write_hugging_face(folder)) as archive:
        logits = archive["router_logits"]
    (folder / "logits.npz").unlink()
    save_file({"router_logits": logits}, folder / "logits.safetensors", metadata={"top_k": "2"})
    return folder / "logits.safetensors"


WRITERS: list[Callable[[Path], Path]] = [
    write_sglang,
    write_megatron,
    write_vllm,
    write_tensorrt_llm,
    write_flame,
    write_hugging_face,
    write_hugging_face_safetensors,
]
each_format = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))


def refused(path: Path, reason: str, **options: int) -> None:
    """One ValueError that names the file or its folder, and drags no other exception along."""
    with pytest.raises(ValueError, match=reason) as caught:
        read_foreign(path, **options)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@each_format
def test_the_same_choices_come_out_of_every_format(tmp_path, write):
    file = write(tmp_path)
    for path in (file, tmp_path, str(tmp_path)):
        loads, routing = read_foreign(path)
        np.testing.assert_array_equal(loads.tokens, [LOADS_LE])
        assert (loads.source.tokens_per_step, loads.source.top_k) == (3, 2)
        if routing is None:
            assert write is write_tensorrt_llm
            continue
        assert routing.num_experts == 6
        np.testing.assert_array_equal(np.sort(routing.expert_indices), np.sort(CHOSEN_LTK)[None])
        np.testing.assert_array_equal(routing.source_device, 0)
        assert routing.source == loads.source


@each_format
def test_what_was_read_fits_our_own_trace_folder(tmp_path, write):
    loads, routing = read_foreign(write(tmp_path))
    out = TraceWriter(tmp_path / "trace", loads.source, loads.num_layers, loads.num_experts)
    out.write_loads(loads.step, loads.tokens)
    if routing is not None:
        out.write_routing(int(routing.step[0]), routing.expert_indices[0], routing.source_device)
    refused(tmp_path / "trace", "read_loads reads it")


@each_format
def test_a_file_cut_anywhere_is_refused(tmp_path, write):
    file = write(tmp_path)
    whole = file.read_bytes()
    for length in np.linspace(0, len(whole) - 2, 40).astype(int):
        # a file of lines that lacks its last ones is whole
        if not whole[:length].rstrip().endswith(b"}"):
            file.write_bytes(whole[:length])
            refused(file, re.escape(file.name))


@each_format
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_damaged_byte_is_harmless_or_refused(tmp_path, write, position, flip):
    folder = tmp_path / "dump"
    folder.mkdir(exist_ok=True)
    file = write(folder)
    damaged = bytearray(file.read_bytes())
    damaged[position % len(damaged)] ^= flip
    file.write_bytes(damaged)
    try:
        found, _ = read_foreign(file)
    except ValueError as error:
        # any other kind of error fails the test
        message = str(error)
    else:
        message = str(file)
        assert isinstance(found, LoadTrace)
    assert str(folder) in message


@each_format
def test_an_option_that_a_format_does_not_take_is_refused(tmp_path, write):
    refused(write(tmp_path), "has no use for num_layers; it takes", num_layers=2)


def test_a_path_that_holds_no_dump_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no such file")
    refused(tmp_path, r"no file of a known format \(SGLang expert distribution: \*\.pt; Megatron")
    (tmp_path / "notes.txt").write_text("-")
    (tmp_path / ".half.npy").write_bytes(b"-")
    refused(tmp_path, "no file of a known format")
    refused(tmp_path / "notes.txt", "no file of a known format")


def test_files_of_two_formats_are_not_guessed_at(tmp_path):
    write_vllm(tmp_path)
    write_megatron(tmp_path)
    refused(tmp_path, "several formats: vLLM routed experts, Megatron router trace")


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        np.save(tmp_path / f"request-{number}.npy", np.full((number, 1, 1), 2))
    loads, _ = read_foreign(tmp_path)
    assert loads.tokens[:, 0, 2].tolist() == [1, 9, 10]


def test_every_format_says_which_options_it_takes(tmp_path):
    assert len({one.name for one in FORMATS}) == len(FORMATS) == 6
    (tmp_path / "meta_info.json").write_text("{}")
    (tmp_path / "rank0.safetensors").write_bytes(b"")
    refused(tmp_path, "has no use for top_k; it takes no options", top_k=2)
    with pytest.raises(ValueError, match="it takes num_experts, tokens_per_step"):
        read_foreign(write_vllm(tmp_path), top_k=2)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 9))
def test_cutting_into_steps_keeps_every_token_in_order(widths, tokens_per_step):
    rng = np.random.default_rng(sum(widths))
    blocks = [rng.integers(0, 9, (2, width, 3)) for width in widths]
    steps = in_steps(Path("dump"), blocks, tokens_per_step)
    sizes = [block.shape[1] for (block,) in steps.values()]
    assert sizes[:-1] == [tokens_per_step] * (len(sizes) - 1)
    assert sum(sizes) == sum(widths)
    joined = np.concatenate([np.empty((2, 0, 3), int), *(block for (block,) in steps.values())], axis=1)
    np.testing.assert_array_equal(joined, np.concatenate(blocks, axis=1))


def test_steps_of_different_length_are_filled_up_by_device():
    blocks = {
        7: [np.array([[[0], [1]]]), np.array([[[2]]])],
        3: [np.array([[[1]]]), np.array([[[0], [2]]])],
    }
    loads, routing = traces_of_choices(Path("dump"), "test", blocks)
    assert routing.step.tolist() == [3, 7]
    assert routing.source_device.tolist() == [0, 0, 1, 1]
    assert routing.expert_indices[:, 0, :, 0].tolist() == [[1, -1, 0, 2], [0, 1, 2, -1]]
    assert loads.tokens[:, 0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_step_without_tokens_is_left_out():
    tokens = np.array([[[0, 0]], [[1, 2]], [[0, 0]]])
    found = load_trace(Path("dump"), "test", np.array([5, 6, 7]), tokens, None)
    assert found.step.tolist() == [6]
    assert (found.source.tokens_per_step, found.source.top_k) == (3, 1)


def choices(*experts: int) -> dict[int, list[np.ndarray]]:
    return {0: [np.array(experts).reshape(1, -1, 2)]}


@pytest.mark.parametrize(
    ("blocks", "num_experts", "reason"),
    [
        (choices(0, 1, 3, 3), None, "step 0, layer 0, token 1 has expert 3 twice"),
        (choices(0, 4), 4, r"0\.\.3, or -1 for none; got 0\.\.4"),
        (choices(0, -2), None, r"got -2\.\.0"),
        (choices(0, 40_000), None, r"1\.\.32768, got 40001"),
        (choices(0, 1), 0, r"1\.\.32768, got 0"),
        (choices(), None, "no step holds any token"),
        (choices(-1, -1), None, "no step holds any token"),
        ({0: choices(0, 1)[0], 1: choices(0, 1)[0] * 2}, None, r"\[\(1, 1, 2\), \(2, 1, 2\)\]"),
        ({0: choices(0, 1)[0], 1: [np.zeros((2, 1, 2), int)]}, None, r"\[\(1, 1, 2\), \(1, 2, 2\)\]"),
    ],
)
def test_choices_that_cannot_be_are_refused(blocks, num_experts, reason):
    with pytest.raises(ValueError, match=rf"^dump: .*{reason}"):
        traces_of_choices(Path("dump"), "test", blocks, num_experts)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("rank0.safetensors", "safetensors"),
        ("a.safetensors", "safetensors"),
        ("a.parquet", "pyarrow"),
        ("a.pt", "torch"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    for part in (package, f"{package}.numpy", f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, part, None)
    (tmp_path / "meta_info.json").write_text(json.dumps({"num_experts": 3, "num_experts_per_token": 2}))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImportError, match=f"install {package}"):
        read_foreign(tmp_path)
