import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import layer_speed
from benchmarks.layer_speed import (
    GRIDS,
    compare,
    line,
    median_interval,
    paired_seconds,
    peak_bytes,
    product_share,
    step_peak_bytes,
)
from benchmarks.layer_steps import IMPLEMENTATIONS, Size, build, difference, draw_tokens, results

TINY = Size(16, 8, 64, 2, "zipf")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # main sets both, and other tests want them as they were
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.set_num_threads(1)


class TestSteps:
    @pytest.mark.parametrize("load", ["uniform", "zipf"])
    @pytest.mark.parametrize("other", ["plain", *IMPLEMENTATIONS])
    def test_all_variants_compute_the_same(self, other, load):
        steps = build(Size(16, 8, 64, 3, load))
        assert difference(steps["ours"], steps[other]) <= layer_speed.TOLERANCE

    @pytest.mark.parametrize("changed", ["w1", "w2"])
    def test_other_weights_are_a_difference(self, changed):
        steps = build(TINY)
        with torch.no_grad():
            getattr(steps["ours"].layer.experts, changed)[0] += 0.1
        assert difference(steps["ours"], steps["eager"]) > 100 * layer_speed.TOLERANCE

    def test_each_implementation_is_the_one_named(self):
        layers = {name: step.layer for name, step in build(TINY).items() if name in IMPLEMENTATIONS}
        assert {name: layer.experts.config._experts_implementation for name, layer in layers.items()} == dict(
            zip(IMPLEMENTATIONS, IMPLEMENTATIONS, strict=True)
        )

    def test_a_step_does_not_add_to_the_last_ones_gradients(self):
        step = build(TINY)["ours"]
        for first, second in zip(results(step), results(step), strict=True):
            torch.testing.assert_close(first, second)

    @pytest.mark.parametrize(("load", "exponent"), [("uniform", 0.0), ("zipf", 1.0)])
    def test_first_choices_follow_the_shares(self, load, exponent):
        x_TD = draw_tokens(Size(16, 8, 20_000, 1, load), np.random.default_rng(0))
        found = torch.bincount(x_TD[:, :8].argmax(-1), minlength=8).double() / len(x_TD)
        share = 1 / torch.arange(1, 9).double() ** exponent
        torch.testing.assert_close(found, share / share.sum(), atol=0.01, rtol=0)


class TestPairs:
    def test_both_run_in_turn_first(self):
        calls: list[str] = []
        seconds = paired_seconds(lambda: calls.append("a"), lambda: calls.append("b"), 4)
        assert "".join(calls) == "baabbaab"
        assert seconds.shape == (4, 2)
        assert (seconds >= 0).all()

    def test_seconds_stand_in_their_own_column(self):
        busy = paired_seconds(lambda: None, lambda: sum(range(200_000)), 4)
        assert (busy[:, 0] < busy[:, 1]).all()

    @pytest.mark.parametrize(("count", "low", "high"), [(6, 0, 5), (9, 1, 7), (20, 5, 14)])
    def test_interval_is_that_of_the_tables(self, count, low, high):
        values = np.random.default_rng(0).permutation(count).astype(float)
        assert median_interval(values) == ((count - 1) / 2, low, high)

    def test_interval_holds_the_median_often_enough(self):
        draws = np.random.default_rng(0).exponential(size=(2000, 12))
        intervals = np.array([median_interval(values) for values in draws])
        held = (intervals[:, 1] <= np.log(2)) & (np.log(2) <= intervals[:, 2])
        assert held.mean() > 0.94

    def test_too_few_values_are_refused(self):
        with pytest.raises(ValueError, match="needs 6 values, got 5"):
            median_interval(np.arange(5.0))


class TestMemory:
    def test_peak_is_what_is_held_at_once(self):
        def work() -> None:
            first = torch.empty(1000)
            second = torch.empty(3000)
            del first
            third = torch.empty(500)
            del second, third

        assert peak_bytes(work) == 4 * 4000

    def test_nothing_allocated_is_nothing(self):
        assert peak_bytes(lambda: None) == 0

    @pytest.mark.parametrize("other", ["plain", *IMPLEMENTATIONS])
    def test_ours_takes_no_more_than_the_others(self, other):
        steps = build(Size(64, 8, 512, 2, "uniform"))
        assert step_peak_bytes(steps["ours"]) <= step_peak_bytes(steps[other])

    def test_a_step_takes_the_same_every_time(self):
        step = build(TINY)["ours"]
        assert len({step_peak_bytes(step) for _ in range(3)}) == 1


def test_share_of_products():
    matrix = torch.randn(300, 300)
    assert product_share(lambda: matrix @ matrix) > 0.9
    assert product_share(lambda: matrix.sin()) == 0


class TestCompare:
    def test_a_row_tells_what_was_compared(self):
        (row,) = compare(TINY, ["grouped_mm"], 0.0)
        assert (row["dim"], row["load"], row["other"], row["pairs"]) == (16, "zipf", "grouped_mm", 6)
        assert row["low"] <= row["ratio"] <= row["high"]
        assert min(row["seconds"], row["other_seconds"], row["peak_bytes"], row["other_peak_bytes"]) > 0
        assert line(row).startswith("D  16 E  8 T 64 K 2 zipf    grouped_mm time ")

    def test_another_function_is_not_timed(self, monkeypatch):
        monkeypatch.setattr(layer_speed, "TOLERANCE", -1.0)
        with pytest.raises(ValueError, match=r"eager must compute the same to -1\.0, got a difference of"):
            list(compare(TINY, ["eager"], 0.0))

    def test_too_many_copied_weights_are_left_out_and_named(self, monkeypatch):
        monkeypatch.setattr(layer_speed, "BATCHED_BYTES", 1000)
        (row,) = compare(TINY, ["batched_mm"], 0.0)
        assert row["left_out"] == "copies 0.0 GB of weights"
        assert line(row).endswith("batched_mm left out: copies 0.0 GB of weights")

    def test_command_writes_a_line_a_comparison(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setitem(GRIDS, "corners", [TINY, Size(16, 8, 64, 2, "uniform")])
        output = tmp_path / "rows.jsonl"
        layer_speed.main(["--others", "plain", "eager", "--seconds", "0", "--output", str(output)])
        rows = [json.loads(text) for text in output.read_text().splitlines()]
        assert [(row["load"], row["other"]) for row in rows] == [
            ("zipf", "plain"),
            ("zipf", "eager"),
            ("uniform", "plain"),
            ("uniform", "eager"),
        ]
        assert all(row["machine"] and row["torch"] and row["transformers"] for row in rows)
        assert len(capsys.readouterr().out.splitlines()) == 4


def test_grids_hold_the_sizes_asked_for():
    assert len(set(GRIDS["full"])) == len(GRIDS["full"]) == 4 * 3 * 2 * (2 + 2 * 2)
    assert set(GRIDS["corners"]) < set(GRIDS["full"])
