"""vLLM's routed experts: one file a request."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

SEEDS = st.integers(0, 2**32 - 1)


class TestVLLM:
    @settings(max_examples=25)
    @given(SEEDS, st.sampled_from([np.uint8, np.int16, np.int64]))
    def test_choices_come_back(self, tmp_path_factory, make_choices, count, seed, dtype):
        chosen_LTK, num_experts = make_choices(seed)
        file = tmp_path_factory.mktemp("dump") / "a.npy"
        np.save(file, chosen_LTK.swapaxes(0, 1).astype(dtype))
        loads, routing = read_foreign(file, num_experts=num_experts)
        np.testing.assert_array_equal(routing.expert_indices, [chosen_LTK])
        np.testing.assert_array_equal(loads.tokens, [count(chosen_LTK, num_experts)])

    def test_requests_are_steps_unless_tokens_are_cut_into_steps(self, tmp_path):
        for number, width in enumerate((3, 2)):
            np.save(tmp_path / f"{number}.npy", np.full((width, 1, 1), number))
        assert read_foreign(tmp_path)[0].tokens[:, 0].tolist() == [[3, 0], [0, 2]]
        assert read_foreign(tmp_path, tokens_per_step=2)[0].tokens[:, 0].tolist() == [[2, 0], [1, 1], [0, 1]]
        with pytest.raises(ValueError, match="tokens_per_step must be at least 1, got 0"):
            read_foreign(tmp_path, tokens_per_step=0)

    def test_a_layer_without_a_router_holds_nothing(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[[0, 0], [0, 1]], [[0, 0], [2, 0]]]))
        loads, routing = read_foreign(tmp_path)
        assert loads.tokens.tolist() == [[[0, 0, 0], [2, 1, 1]]]
        assert routing.expert_indices[0, 0].tolist() == [[-1, -1], [-1, -1]]
        assert loads.source.tokens_per_step == 2

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.zeros((2, 3), int), r"routed_experts must be integers \(T L K\), got int64 \(2, 3\)"),
            (np.zeros((2, 3, 1)), r"\(T L K\), got float64"),
            (np.array([[[{}]]], object), "not a numpy array without objects"),
            (np.zeros((0, 3, 1), int), "no step holds any token"),
            (np.ones((2, 3, 2), int), "has expert 1 twice"),
        ],
    )
    def test_another_array_is_refused(self, tmp_path, array, reason, refused):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        refused(tmp_path / "a.npy", reason)

    def test_files_that_do_not_belong_together_are_refused(self, tmp_path, refused):
        np.save(tmp_path / "0.npy", np.zeros((2, 1, 1), int))
        np.save(tmp_path / "1.npy", np.zeros((2, 2, 1), int))
        refused(tmp_path, r"differ in \(devices, layers, top-k\)")
        refused(tmp_path, r"files differ in \(layers, top-k\): \[\(1, 1\), \(2, 1\)\]", tokens_per_step=2)
