"""The pieces of `make gpu-check`, on a machine without a GPU."""

import json
import subprocess
import sys
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, layer_timing
from benchmarks.cell import ROOT
from benchmarks.layer_timing import (
    SKEWS,
    VARIANTS,
    PaddedExperts,
    Prescribed,
    Size,
    compare,
    draw_choices,
    interleave,
    summary,
)
from benchmarks.megablocks_parity import Check, layer_checks
from models.dispatch import LocalDispatcher
from models.experts import GroupedExperts, LoopExperts
from models.megablocks import is_installed
from models.moe import MoELayer
from routers.topk import TopK

CPU, SMALL = torch.device("cpu"), Size(tokens=40, dim=8, hidden_dim=16, num_experts=6, top_k=2)


class TestWithoutADevice:
    def test_it_says_so_in_one_line_and_fails(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert gpu_check.main(["--output", str(tmp_path / "rows.jsonl")]) == 2
        assert capsys.readouterr().out.count("\n") == 1
        assert not (tmp_path / "rows.jsonl").exists()

    def test_it_needs_neither_hydra_nor_wandb(self):
        program = (
            "import sys, benchmarks.gpu_check; print([m for m in ('hydra', 'omegaconf', 'wandb') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestChoices:
    @pytest.mark.parametrize("skew", SKEWS.values())
    def test_a_tokens_experts_differ(self, skew):
        chosen = draw_choices(SMALL, skew)
        assert chosen.shape == (SMALL.tokens, SMALL.top_k)
        assert all(len(set(row)) == SMALL.top_k for row in chosen.tolist())

    def test_skew_is_that_of_the_shares(self):
        size = SMALL._replace(tokens=20_000, top_k=1)
        uniform, zipf = (np.bincount(draw_choices(size, skew)[:, 0], minlength=6) / 20_000 for skew in (0.0, 1.0))
        assert uniform == pytest.approx(np.full(6, 1 / 6), abs=0.01)
        share = 1 / np.arange(1, 7)
        assert zipf == pytest.approx(share / share.sum(), abs=0.01)

    def test_prescribed_experts_are_chosen_with_their_scores_as_weights(self):
        chosen = draw_choices(SMALL, 1.0)
        routing = Prescribed(chosen, SMALL.dim, SMALL.num_experts)(torch.randn(SMALL.tokens, SMALL.dim))
        assert torch.equal(routing.expert_indices, chosen)
        torch.testing.assert_close(routing.expert_weights.sum(1), torch.ones(SMALL.tokens))


@pytest.mark.parametrize("loads", [[5, 5, 5], [1, 13, 2], [0, 9, 0]])
def test_padded_products_equal_one_an_expert(loads):
    padded, loop = PaddedExperts(3, 8, 12, init_std=0.5), LoopExperts(3, 8, 12)
    loop.load_state_dict(padded.state_dict())
    x_ND, tokens_per_expert = torch.randn(sum(loads), 8), torch.tensor(loads)
    found, expected = padded(x_ND, tokens_per_expert), loop(x_ND, tokens_per_expert)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(padded.w1.grad, loop.w1.grad)


class TestTiming:
    def test_every_round_has_each_step_once(self):
        ran = []
        steps = {name: partial(ran.append, name) for name in "abc"}
        numbers = count()

        def clock(step):
            step()
            return float(next(numbers))

        times = interleave(steps, 20, clock)
        rounds = [tuple(ran[i : i + 3]) for i in range(0, 60, 3)]
        assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
        assert len(set(rounds)) > 1
        assert times["b"] == [float(i) for i, name in enumerate(ran) if name == "b"]

    def test_summary_is_the_median_and_the_quartiles(self):
        found = summary([5.0, 1.0, 2.0, 3.0, 4.0])
        assert found == {"median_ms": 3.0, "low_ms": 2.0, "high_ms": 4.0, "rounds": 5}

    def test_stand_ins_are_not_timed_as_megablocks(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        steps = []

        def clock(step):
            steps.append(step)
            step()
            return 1.0

        rows = {row["variant"]: row for row in compare(SMALL, "zipf", CPU, 2, clock)}
        assert list(rows) == list(VARIANTS)
        timed = {name for name, row in rows.items() if "median_ms" in row}
        assert timed == {"ours, grouped_mm", "ours, padded bmm"}
        assert all("no measurement of MegaBlocks" in rows[name]["reason"] for name in rows.keys() - timed)
        assert len(steps) == 2 * len(timed)
        assert rows["ours, grouped_mm"]["num_experts"] == SMALL.num_experts

    def test_all_variants_step_where_the_label_is_allowed(self, monkeypatch):
        if not is_installed() or torch.cuda.is_available():
            pytest.skip("MegaBlocks is not installed: make megablocks")
        monkeypatch.setattr(layer_timing, "check_label", lambda parts: None)
        size = SMALL._replace(hidden_dim=32)

        def clock(step):
            step()
            return 1.0

        rows = {row["variant"]: row for row in compare(size, "uniform", CPU, 1, clock)}
        assert {name for name, row in rows.items() if "reason" in row} == {"stock dMoE, sparse"}
        assert "Triton" in rows["stock dMoE, sparse"]["reason"]


class TestParity:
    def test_parts_pass_over_stand_ins_or_say_what_is_missing(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        rows = list(gpu_check.parity_rows(CPU))
        ran = {row["part"] for row in rows if "error" in row}
        assert ran == ({"ops", "kernels", "grouped"} if is_installed() else set())
        assert all(row["passed"] for row in rows if "error" in row)
        assert all("MegaBlocks" in row["reason"] or "Triton" in row["reason"] for row in rows if "error" not in row)

    def layer(self, router):
        return MoELayer(router, GroupedExperts(5, 128, 128), LocalDispatcher())

    def test_a_right_layer_passes(self):
        checks = list(layer_checks("layer", self.layer(TopK(128, 5, 0, top_k=2)), TopK(128, 5, 0, top_k=2), CPU))
        assert len(checks) == 5
        assert all(check.passed for check in checks)

    def test_a_wrong_layer_does_not(self):
        wrong, right = TopK(128, 5, 0, top_k=2, renormalise=False), TopK(128, 5, 0, top_k=2)
        checks = {check.name: check.passed for check in layer_checks("layer", self.layer(wrong), right, CPU)}
        assert not checks["layer: output"]
        assert not checks["layer: gradient experts.w1"]

    @pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-6, True), (2e-6, False), (float("nan"), False)])
    def test_tolerance(self, error, passed):
        assert Check("part", error, 1e-6).passed is passed


class TestReport:
    PARITY = (
        {"kind": "parity", "part": "ops", "name": "ops: sort", "error": 0.0, "tolerance": 0.0, "passed": True},
        {"kind": "parity", "part": "sparse", "name": "sparse", "passed": False, "reason": "no Triton"},
    )
    TIMING = (
        {"variant": "ours", "skew": "zipf", **SMALL._asdict(), **summary([1.0, 2.0, 3.0])},
        {"variant": "stock", "skew": "zipf", **SMALL._asdict(), "reason": "stand-ins"},
    )

    @pytest.fixture
    def on_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu_check, "ground", lambda device: {"device": "some GPU"})
        monkeypatch.setattr(gpu_check, "timing_rows", lambda device, sizes, rounds: iter(self.TIMING))

    @pytest.mark.parametrize(("num_rows", "status"), [(1, 0), (2, 1)])
    def test_rows_are_lines_of_json_and_a_part_that_did_not_pass_fails(
        self, num_rows, status, on_cuda, monkeypatch, tmp_path, capsys
    ):
        monkeypatch.setattr(gpu_check, "parity_rows", lambda device: iter(self.PARITY[:num_rows]))
        assert gpu_check.main(["--output", str(tmp_path / "new" / "rows.jsonl")]) == status
        rows = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
        assert len(rows) == num_rows + 2
        assert all(row["device"] == "some GPU" for row in rows)
        printed = capsys.readouterr().out
        assert "2.000 (1.500..2.500)" in printed
        assert "stand-ins" in printed

    def test_verdicts(self):
        assert " ok " in gpu_check.parity_line(self.PARITY[0])
        assert " not run " in gpu_check.parity_line(self.PARITY[1])
        wrong = self.PARITY[0] | {"error": 0.5, "passed": False}
        assert " WRONG " in gpu_check.parity_line(wrong)

    def test_ground_names_what_is_installed_and_native(self):
        found = gpu_check.ground(CPU)
        assert found["versions"]["torch"] == torch.__version__
        assert set(found["native_parts"]) == {"grouped", "sparse"}
        assert (found["versions"]["megablocks"] == "absent") is not is_installed()
