"""TensorRT-LLM's statistics: the counts of all ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

safetensors = pytest.importorskip("safetensors.numpy")
SEEDS = st.integers(0, 2**32 - 1)


def save_tensorrt_llm(folder: Path, tensors: dict[str, np.ndarray], rank: int = 0, **manifest) -> Path:
    meta_info = {"num_experts": 3, "num_experts_per_token": 2} | manifest
    (folder / "meta_info.json").write_text(json.dumps(meta_info))
    safetensors.save_file(tensors, folder / f"rank{rank}.safetensors")
    return folder


class TestTensorRTLLM:
    @settings(max_examples=25)
    @given(SEEDS)
    def test_ranks_are_summed(self, tmp_path_factory, seed):
        folder = tmp_path_factory.mktemp("dump")
        tokens_RSLE = np.random.default_rng(seed).integers(1, 9, (3, 2, 2, 3))
        for rank, tokens_SLE in enumerate(tokens_RSLE):
            tensors = {
                f"{step}_{layer}": tokens_SLE[i, j] for i, step in enumerate((9, 10)) for j, layer in enumerate((3, 12))
            }
            save_tensorrt_llm(folder, tensors, rank)
        loads, routing = read_foreign(folder)
        assert routing is None
        assert loads.step.tolist() == [9, 10]
        np.testing.assert_array_equal(loads.tokens, tokens_RSLE.sum(0))
        assert loads.source.top_k == 2

    @pytest.mark.parametrize(
        ("tensors", "manifest", "reason"),
        [
            ({}, {}, "no tensor in any file"),
            ({"weight": np.ones(3, int)}, {}, "named ITERATION_LAYER, got 'weight'"),
            ({"1_-2": np.ones(3, int)}, {}, "named ITERATION_LAYER"),
            ({"1_2": np.ones(4, int)}, {}, r"1_2 has 4 experts, meta_info.json says 3"),
            ({"1_2": np.ones((1, 3), int)}, {}, r"1_2 must be integers \(E\)"),
            ({"1_2": np.ones(3)}, {}, r"1_2 must be integers \(E\), got float64"),
            ({"1_2": -np.ones(3, int)}, {}, "must not be negative"),
            ({"1_2": np.ones(3, int), "2_3": np.ones(3, int)}, {}, "iteration 1 lacks layer 3"),
            ({}, {"num_experts": "3"}, "num_experts must be a whole number"),
            ({}, {"num_experts_per_token": 4}, "num_experts 3 with num_experts_per_token 4"),
            ({}, {"num_experts": 10**9}, "cannot be"),
        ],
    )
    def test_another_file_is_refused(self, tmp_path, tensors, manifest, reason, refused):
        refused(save_tensorrt_llm(tmp_path, tensors, **manifest), reason)

    def test_a_damaged_manifest_is_refused(self, tmp_path, refused):
        save_tensorrt_llm(tmp_path, {"1_2": np.ones(3, int)})
        for text, reason in (
            ("{", "not JSON"),
            ("[]", "must hold num_experts and"),
            ('{"num_experts": 3}', "must hold"),
        ):
            (tmp_path / "meta_info.json").write_text(text)
            refused(tmp_path, f"meta_info.json: {reason}")
        (tmp_path / "meta_info.json").unlink()
        refused(tmp_path, "meta_info.json: missing")
