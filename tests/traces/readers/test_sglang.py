"""SGLang's dumps: physical experts become logical, ranks are joined, nothing is executed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.foreign import read_foreign

torch = pytest.importorskip("torch")
SEEDS = st.integers(0, 2**32 - 1)


def record(step=0, rank=0, counts=((1, 2, 0), (0, 1, 2)), **others) -> dict:
    return {"forward_pass_id": step, "rank": rank, "global_physical_count": torch.tensor(counts), **others}


def save_sglang(path: Path, *records: dict, logical=((0, 1, 0), (1, 0, 0)), **others) -> Path:
    torch.save({"records": list(records), "last_physical_to_logical_map": torch.tensor(logical), **others}, path)
    return path


class TestSGLang:
    @settings(max_examples=25)
    @given(SEEDS, st.booleans())
    def test_counts_come_back(self, tmp_path_factory, seed, summed):
        tokens = np.random.default_rng(seed).integers(0, 5, (4, 2, 3))
        tokens[1] = 0
        tokens[0, 0, 0] += 1
        file = tmp_path_factory.mktemp("dump") / "expert_distribution_recorder_1.pt"
        logical_count = torch.tensor(tokens.sum(0) if summed else tokens)
        torch.save({"rank": 0, "logical_count": logical_count, "average_utilization_rate_over_window": None}, file)
        loads, routing = read_foreign(file, top_k=1)
        assert routing is None
        routed = [0] if summed else np.flatnonzero(tokens.any(axis=(1, 2)))
        np.testing.assert_array_equal(loads.step, routed)
        np.testing.assert_array_equal(loads.tokens, tokens.sum(0)[None] if summed else tokens[routed])

    def test_dumps_of_counts_follow_one_another(self, tmp_path):
        for name, value in (("a_10.pt", 3), ("a_9.pt", 2)):
            torch.save({"logical_count": torch.full((2, 1, 2), value, dtype=torch.int32)}, tmp_path / name)
        assert read_foreign(tmp_path)[0].tokens[:, 0, 0].tolist() == [2, 2, 3, 3]

    @settings(max_examples=25)
    @given(SEEDS)
    def test_physical_experts_become_logical(self, tmp_path_factory, make_choices, count, seed):
        chosen_LTK, num_experts = make_choices(seed)
        rng = np.random.default_rng(seed)
        # every expert once, three replicas, in any order
        spare = rng.integers(0, num_experts, (len(chosen_LTK), 3))
        logical = np.concatenate([np.tile(np.arange(num_experts), (len(chosen_LTK), 1)), spare], axis=1)
        logical = rng.permuted(logical, axis=1)
        physical = np.array(
            [
                [[rng.choice(np.flatnonzero(row == expert)) for expert in token] for token in layer]
                for row, layer in zip(logical, chosen_LTK, strict=True)
            ]
        )
        padded = np.full((*physical.shape[:2], 9), -1, np.int32)
        padded[..., : physical.shape[2]] = physical
        counts = count(physical, logical.shape[1])
        file = tmp_path_factory.mktemp("dump") / "recorder_1_0.pt"
        save_sglang(file, record(counts=counts, topk_ids_of_layer=torch.tensor(padded)), logical=logical)
        loads, routing = read_foreign(file)
        np.testing.assert_array_equal(loads.tokens, [count(chosen_LTK, num_experts)])
        assert routing is not None
        np.testing.assert_array_equal(routing.expert_indices, chosen_LTK[None])

    def test_ranks_are_summed_and_their_tokens_stand_side_by_side(self, tmp_path):
        for rank, widths in enumerate([(2, 1), (1, 3)]):
            records = [
                record(step, rank, counts=[[0, width, 0]], topk_ids_of_layer=torch.full((1, width, 8), -1))
                for step, width in zip((5, 9), widths, strict=True)
            ]
            for one in records:
                one["topk_ids_of_layer"][..., 0] = 1
            save_sglang(tmp_path / f"recorder_1_{rank}.pt", *records, logical=[[0, 1, 0]])
        loads, routing = read_foreign(tmp_path)
        assert loads.step.tolist() == [5, 9]
        assert loads.tokens[:, 0].tolist() == [[0, 3], [0, 4]]
        assert routing.source_device.tolist() == [0, 0, 1, 1, 1]
        assert routing.expert_indices[:, 0, :, 0].tolist() == [[1, 1, 1, -1, -1], [1, -1, 1, 1, 1]]

    def test_records_without_choices_give_loads(self, tmp_path):
        file = save_sglang(tmp_path / "a.pt", record(3, gatherer_key="a"), record(3, gatherer_key="b"))
        loads, routing = read_foreign(file, top_k=2)
        assert routing is None
        assert loads.tokens.tolist() == [[[2, 4], [6, 0]]]
        assert (loads.source.tokens_per_step, loads.source.top_k) == (3, 2)

    def test_nothing_is_executed(self, tmp_path, refused):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        torch.save({"logical_count": Trap()}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "without executing code")
        (tmp_path / "a.pt").write_bytes(pickle.dumps({"records": [Trap()]}, protocol=2))
        refused(tmp_path / "a.pt", "without executing code")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("dump", "reason"),
        [
            ([1], "must hold a dictionary, got list"),
            ({"counts": 1}, r"found \['counts'\]"),
            ({"logical_count": torch.ones(2, 3, 4)}, r"logical_count must be integers \(S L E\), got float32"),
            ({"logical_count": None}, r"logical_count must be integers \(S L E\), got object"),
            ({"logical_count": -torch.ones(1, 1, 2, dtype=torch.int64)}, "must not be negative, got -1"),
            ({"logical_count": torch.zeros(2, 1, 2, dtype=torch.int64)}, "no step holds any token"),
            ({"records": []}, "records without last_physical_to_logical_map"),
        ],
    )
    def test_another_dump_is_refused(self, tmp_path, dump, reason, refused):
        torch.save(dump, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", reason)

    @pytest.mark.parametrize(
        ("records", "reason"),
        [
            ([], "records is empty"),
            ([[1]], r"records\[0\].forward_pass_id is missing"),
            ([record(), {"forward_pass_id": 1}], r"records\[1\].rank is missing"),
            ([record("one")], r"records\[0\].forward_pass_id must be a whole number, not negative, got 'one'"),
            ([record(True)], "got True"),
            ([record(rank=-1)], r"records\[0\].rank must be a whole number"),
            ([record(counts=[[1, 2], [3, 4]])], r"global_physical_count has \(2, 2\), the map \(2, 3\)"),
            ([record(topk_ids_of_layer=torch.zeros(2, 4))], r"topk_ids_of_layer must be integers \(L T K\)"),
            ([record(topk_ids_of_layer=torch.full((2, 1, 1), 3))], r"must lie in -1\.\.2, got 3\.\.3"),
            ([record(topk_ids_of_layer=torch.zeros(1, 1, 1, dtype=torch.int64))], "has 1 layers, the map 2"),
            (
                [record(i, topk_ids_of_layer=torch.zeros(2, 1, 1 + i, dtype=torch.int64)) for i in range(2)],
                r"different numbers of columns: \[1, 2\]",
            ),
            ([record(), record()], "forward_pass_id 0 of rank 0 is recorded twice"),
            ([record(0, 0), record(0, 1), record(1, 0)], r"forward_pass_id 1 lacks ranks \[1\]"),
        ],
    )
    def test_a_damaged_record_is_refused(self, tmp_path, records, reason, refused):
        refused(save_sglang(tmp_path / "a.pt", *records), reason)

    def test_a_map_that_cannot_be_is_refused(self, tmp_path, refused):
        refused(save_sglang(tmp_path / "a.pt", record(), logical=[[0, -1, 1]]), r"must hold experts in 0\.\.32767")
        refused(save_sglang(tmp_path / "a.pt", record(), records=None), "records must be a list, got NoneType")
        save_sglang(tmp_path / "b.pt", record(rank=1), logical=[[0, 2, 1], [0, 1, 2]])
        save_sglang(tmp_path / "a.pt", record())
        refused(tmp_path, r"differs in \(L, E\) from file to file: \[\(2, 2\), \(2, 3\)\]")
