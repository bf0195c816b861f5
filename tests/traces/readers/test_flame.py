"""FLAME-MoE's tables: layers in one file or in one each."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SEEDS = st.integers(0, 2**32 - 1)


def save_flame(path: Path, indices: object, **columns: object) -> Path:
    parquet.write_table(pyarrow.table({"indices": indices, **columns}), path)
    return path


class TestFlame:
    @settings(max_examples=25)
    @given(SEEDS, st.booleans())
    def test_choices_come_back(self, tmp_path_factory, make_choices, count, seed, one_file):
        chosen_LTK, num_experts = make_choices(seed)
        folder = tmp_path_factory.mktemp("dump")
        num_layers, num_tokens, _ = chosen_LTK.shape
        if one_file:
            # rows of all layers mixed
            rows = chosen_LTK.swapaxes(0, 1).reshape(num_layers * num_tokens, -1)
            save_flame(folder / "a.parquet", rows.tolist(), layer=list(range(num_layers)) * num_tokens)
        else:
            for layer, chosen_TK in enumerate(chosen_LTK):
                save_flame(folder / f"layer-{layer}.parquet", chosen_TK.tolist())
        loads, routing = read_foreign(folder, num_experts=num_experts)
        np.testing.assert_array_equal(routing.expert_indices, [chosen_LTK])
        np.testing.assert_array_equal(loads.tokens, [count(chosen_LTK, num_experts)])

    def test_scores_of_all_experts_say_how_many_there_are(self, tmp_path):
        file = save_flame(tmp_path / "a.parquet", [[0, 1], [2, 0]], scores=[[0.25] * 8] * 2)
        assert read_foreign(file)[0].num_experts == 8
        save_flame(file, [[0, 1], [2, 0]], scores=[[0.25] * 2] * 2)
        assert read_foreign(file)[0].num_experts == 3

    def test_tokens_are_cut_into_steps(self, tmp_path):
        file = save_flame(tmp_path / "a.parquet", [[0], [1], [1]])
        assert read_foreign(file, tokens_per_step=2)[0].tokens[:, 0].tolist() == [[1, 1], [0, 1]]

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"indices": [1, 2]}, "indices must hold a list for each token"),
            ({"indices": [[1], [1, 2]]}, r"indices must hold lists of one length, got \[1, 2\]"),
            ({"indices": [[1], None]}, "indices must hold lists of one length"),
            ({"indices": [[1], [None]]}, "indices must be integers"),
            ({"indices": [[], []]}, "indices must hold lists of one length"),
            ({"indices": [[0.5], [1.0]]}, r"indices must be integers \(R K\), got float64"),
            ({"indices": [[0], [1]], "layer": ["a", "b"]}, r"layer must be integers \(R\)"),
            ({"indices": [[0], [1], [0]], "layer": [0, 0, 1]}, r"same tokens and K, got \[\(2, 1\), \(1, 1\)\]"),
            ({"indices": [[0], [9]], "scores": [[0.5, 0.5]] * 2}, r"0\.\.1, or -1 for none; got 0\.\.9"),
            ({"indices": [[0, 0]]}, "has expert 0 twice"),
        ],
    )
    def test_another_table_is_refused(self, tmp_path, columns, reason, refused):
        refused(save_flame(tmp_path / "a.parquet", **columns), reason)

    def test_files_that_do_not_belong_together_are_refused(self, tmp_path, refused):
        save_flame(tmp_path / "0.parquet", [[0], [1]], layer=[0, 0])
        save_flame(tmp_path / "1.parquet", [[0], [1]])
        refused(tmp_path, "only some have the column layer")
        save_flame(tmp_path / "0.parquet", [[0], [1]], scores=[[0.5] * 4] * 2)
        refused(tmp_path, "scores have different lengths")

    def test_a_table_without_indices_is_refused(self, tmp_path, refused):
        parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet", r"column indices is missing, found \['text'\]")
