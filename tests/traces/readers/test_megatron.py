"""Megatron's router traces: ranks, pipeline stages and micro-batches fall into place."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

SEEDS = st.integers(0, 2**32 - 1)


def row(step=0, block="decoder", layer=0, rank=0, chosen=((0, 1),), **others) -> dict:
    chosen = np.array(chosen)
    found = {"step": step, "block": block, "layer": layer, "rank": rank, "topk": chosen.shape[-1]}
    return found | {"top_indices": chosen.tolist()} | others


def save_megatron(folder: Path, *rows: dict) -> Path:
    """One file a rank, as Megatron's ranks write them."""
    for one in rows:
        with (folder / f"router_trace_rank{one['rank']}.jsonl").open("a") as file:
            file.write(json.dumps(one) + "\n")
    return folder


class TestMegatron:
    @settings(max_examples=25)
    @given(SEEDS, st.integers(1, 3))
    def test_choices_come_back(self, tmp_path_factory, make_choices, count, seed, num_batches):
        chosen_LTK, num_experts = make_choices(seed)
        folder = tmp_path_factory.mktemp("dump")
        for step in (3, 8):
            for batch in np.array_split(chosen_LTK, num_batches, axis=1):
                save_megatron(folder, *(row(step, 0, layer, 0, chosen) for layer, chosen in enumerate(batch)))
        loads, routing = read_foreign(folder, num_experts=num_experts)
        assert loads.step.tolist() == [3, 8]
        np.testing.assert_array_equal(routing.expert_indices, [chosen_LTK] * 2)
        np.testing.assert_array_equal(loads.tokens, [count(chosen_LTK, num_experts)] * 2)

    def test_data_parallel_ranks_are_source_devices(self, tmp_path):
        rows = [row(rank=rank, chosen=[[rank]] * (1 + (rank == 10))) for rank in (10, 2, 0)]
        _, routing = read_foreign(save_megatron(tmp_path, *rows))
        assert routing.source_device.tolist() == [0, 1, 2, 2]
        assert routing.expert_indices.ravel().tolist() == [0, 2, 10, 10]

    def test_a_rank_may_have_no_token(self, tmp_path):
        rows = [row(rank=0, chosen=[[2, 0]]), row(rank=1, top_indices=[])]
        _, routing = read_foreign(save_megatron(tmp_path, *rows))
        assert routing.source_device.tolist() == [0]
        assert routing.expert_indices.tolist() == [[[[2, 0]]]]

    def test_pipeline_stages_hold_other_layers_of_the_same_tokens(self, tmp_path):
        rows = [row(layer=layer, rank=rank, chosen=[[layer]]) for layer, rank in ((0, 0), (0, 1), (1, 2), (1, 3))]
        _, routing = read_foreign(save_megatron(tmp_path, *rows))
        assert routing.source_device.tolist() == [0, 1]
        assert routing.expert_indices[0, :, :, 0].tolist() == [[0, 0], [1, 1]]

    def test_layers_are_ordered_by_block(self, tmp_path):
        blocks = ("mtp", 1, 0, "decoder")
        rows = [
            row(block=block, layer=layer, chosen=[[2 * i + layer]])
            for i, block in enumerate(blocks)
            for layer in (1, 0)
        ]
        _, routing = read_foreign(save_megatron(tmp_path, *rows))
        assert routing.expert_indices[0, :, 0, 0].tolist() == [4, 5, 2, 3, 6, 7, 0, 1]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "line 2: not JSON"),
            ("[" * 100_000, "line 2: not JSON"),
            ("[]", "line 2: must hold an object, got list"),
            ("{}", "line 2: step is missing"),
            (json.dumps(row(step=-1)), "line 2: step must be a whole number, not negative, got -1"),
            (json.dumps(row(step=2**70)), "line 2: step must be"),
            (json.dumps(row(block=None)), "line 2: block must be"),
            (json.dumps(row(topk=3)), "line 2: topk is 3, top_indices has 2 a token"),
            (json.dumps(row(top_indices=[[0, 1], [2]])), r"line 2: top_indices must be integers \(T K\), got no array"),
            (json.dumps(row(top_indices=[[0.5, 1]])), r"line 2: top_indices must be integers \(T K\), got float64"),
            (json.dumps(row(top_indices="all")), "line 2: top_indices must be integers"),
            (json.dumps(row(chosen=[[1, 1]])), "has expert 1 twice"),
            (json.dumps(row(chosen=[[0, 2**40]])), "must lie in 1"),
            (json.dumps(row(chosen=[[0]])), r"topk of layer 0, rank 0, changes: \[1, 2\]"),
            (json.dumps(row(step=1, layer=1)), "step 0 lacks layer 1 of block decoder"),
            (json.dumps(row(layer=1, chosen=[[0, 1]] * 2)), r"layer 1, block decoder, has \[\(2, 2\)\] by rank"),
        ],
    )
    def test_a_damaged_line_is_refused(self, tmp_path, line, reason, refused):
        save_megatron(tmp_path, row())
        file = tmp_path / "router_trace_rank0.jsonl"
        file.write_text(file.read_text() + line + "\n")
        refused(tmp_path, reason)

    def test_no_line_is_no_trace(self, tmp_path, refused):
        (tmp_path / "router_trace_rank0.jsonl").write_text("\n")
        refused(tmp_path, "no line in any file")
