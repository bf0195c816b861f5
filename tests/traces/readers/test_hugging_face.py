"""Hugging Face's router logits: the largest ones are a token's experts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

safetensors = pytest.importorskip("safetensors.numpy")
SEEDS = st.integers(0, 2**32 - 1)


def save_hugging_face(folder: Path, logits: np.ndarray, top_k: object, kind: str) -> Path:
    file = folder / f"logits.{kind}"
    if kind == "npz":
        np.savez(file, router_logits=logits, **({} if top_k is None else {"top_k": top_k}))
    else:
        metadata = None if top_k is None else {"top_k": str(top_k)}
        safetensors.save_file({"router_logits": logits}, file, metadata=metadata)
    return file


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
class TestHuggingFace:
    @settings(max_examples=25)
    @given(SEEDS, st.sampled_from([np.float16, np.float32, np.float64]))
    def test_the_largest_logits_are_chosen(self, tmp_path_factory, make_choices, count, kind, seed, dtype):
        chosen_LTK, num_experts = make_choices(seed)
        top_k = chosen_LTK.shape[2]
        logits = np.full((*chosen_LTK.shape[:2], num_experts), -1.0, dtype)
        np.put_along_axis(logits, chosen_LTK, np.arange(top_k, 0, -1, dtype=dtype), axis=-1)
        file = save_hugging_face(tmp_path_factory.mktemp("dump"), logits, top_k, kind)
        loads, routing = read_foreign(file)
        np.testing.assert_array_equal(routing.expert_indices, [chosen_LTK])
        np.testing.assert_array_equal(loads.tokens, [count(chosen_LTK, num_experts)])

    def test_equal_logits_go_to_the_lower_number(self, tmp_path, kind):
        file = save_hugging_face(tmp_path, np.zeros((1, 2, 4), np.float32), 2, kind)
        assert read_foreign(file)[1].expert_indices.tolist() == [[[[0, 1], [0, 1]]]]

    def test_top_k_may_be_given(self, tmp_path, kind, refused):
        file = save_hugging_face(tmp_path, np.zeros((1, 2, 4), np.float32), None, kind)
        refused(file, "top_k is missing; save it with the logits or give it as top_k=K")
        assert read_foreign(file, top_k=3)[0].source.top_k == 3
        assert read_foreign(file, top_k=3, tokens_per_step=1)[0].tokens.shape == (2, 1, 4)

    @pytest.mark.parametrize(
        ("logits", "top_k", "reason"),
        [
            (np.zeros((2, 4), np.float32), 2, r"router_logits must be floats \(L, T, E\), got float32 \(2, 4\)"),
            (np.zeros((1, 2, 4), np.int32), 2, "router_logits must be floats"),
            (np.full((1, 2, 4), np.nan, np.float32), 2, "router_logits must be finite"),
            (np.zeros((1, 2, 4), np.float32), 5, r"top_k must lie in 1\.\.4, got 5"),
            (np.zeros((1, 2, 4), np.float32), 0, r"top_k must lie in 1\.\.4, got 0"),
            (np.zeros((1, 0, 4), np.float32), 2, "no step holds any token"),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path, kind, logits, top_k, reason, refused):
        refused(save_hugging_face(tmp_path, logits, top_k, kind), reason)

    def test_a_file_without_logits_is_refused(self, tmp_path, kind, refused):
        file = tmp_path / f"a.{kind}"
        if kind == "npz":
            np.savez(file, logits=np.zeros(2), top_k=2)
        else:
            safetensors.save_file({"logits": np.zeros(2)}, file, metadata={"top_k": "2"})
        refused(file, r"router_logits is missing, found \['logits', 'top_k'\]")

    def test_files_of_two_models_are_refused(self, tmp_path, kind, refused):
        save_hugging_face(tmp_path, np.zeros((1, 2, 4), np.float32), 2, kind).rename(tmp_path / f"0.{kind}")
        save_hugging_face(tmp_path, np.zeros((1, 2, 5), np.float32), 2, kind)
        refused(tmp_path, r"router_logits differ in experts from file to file: \[4, 5\]")


def test_a_pickle_in_an_archive_is_refused(tmp_path, refused):
    np.savez(tmp_path / "a.npz", router_logits=np.array([{}], object), top_k=2)
    refused(tmp_path / "a.npz", "not a file of float arrays that can be read")
