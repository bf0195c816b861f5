"""Verdicts against intervals worked out by hand, and every way in which a claim can be misspelt."""

import math
from typing import Any

import pytest

from benchmarks.expectation import parse_expectation, significant
from benchmarks.record import Record
from benchmarks.verdict import (
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    confidence_interval,
    judge,
    over_seeds,
)

CLAIM = {
    "id": "claim",
    "claim": "errors are small",
    "source": "[P] abstract",
    "published": "about 1.3 %",
    "metric": "error",
    "select": {"method": "a"},
    "relation": "at_most",
    "target": 2.5,
}


def claim(**changes: Any) -> Any:
    return parse_expectation({**CLAIM, **changes})


def record(value: float, seed: int = 0, **changes: Any) -> Record:
    columns = {"experiment": "e", "scale": "cpu", "ground": "cpu", "setting": "nano", "method": "a"}
    return Record(**{**columns, "metric": "error", "cell": "c", "seed": seed, "value": float(value), **changes})


def records(*values: float, **changes: Any) -> list[Record]:
    """One record a seed."""
    return [record(value, seed, **changes) for seed, value in enumerate(values)]


class TestInterval:
    def test_of_three_by_hand(self):
        # mean 2, s = 1, standard error 1 / sqrt 3 = 0.57735; t(0.975, 2) = 4.302653, t(0.8, 2) = 1.060660
        interval = confidence_interval([1.0, 2.0, 3.0])
        assert interval.mean == 2.0
        assert interval.low == pytest.approx(2 - 4.302653 * 0.577350, abs=1e-5)
        assert interval.high == pytest.approx(2 + 4.302653 * 0.577350, abs=1e-5)
        assert interval.detectable == pytest.approx((4.302653 + 1.060660) * 0.577350, abs=1e-5)
        assert interval.count == 3

    def test_of_two_by_hand(self):
        # s = sqrt 2 / 2 * 2, standard error 1; t(0.975, 1) = 12.7062
        assert confidence_interval([0.0, 2.0]).high == pytest.approx(1 + 12.7062, abs=1e-4)

    def test_one_seed_has_none(self):
        interval = confidence_interval([5.0])
        assert interval.mean == 5.0
        assert math.isnan(interval.low)
        assert math.isnan(interval.detectable)

    def test_nothing_is_nan(self):
        assert math.isnan(confidence_interval([]).mean)

    def test_over_seeds_averages_a_seeds_rows_first(self):
        rows = [record(1.0, 0), record(3.0, 0), record(4.0, 1), record(math.nan, 2)]
        assert over_seeds(rows) == confidence_interval([2.0, 4.0])


class TestVerdict:
    # three seeds at 1, 2, 3: the interval is 2 +- 2.484
    @pytest.mark.parametrize(
        ("relation", "target", "tolerance", "verdict"),
        [
            ("at_most", 4.5, 0, REPRODUCED),
            ("at_most", 4.4, 0, UNDECIDED),
            ("at_most", -0.5, 0, NOT_REPRODUCED),
            ("at_least", -0.5, 0, REPRODUCED),
            ("at_least", 0.0, 0, UNDECIDED),
            ("at_least", 4.5, 0, NOT_REPRODUCED),
            ("about", 2.0, 1.3, REPRODUCED),
            ("about", 2.0, 1.2, UNDECIDED),
            ("about", -4.0, 0.1, NOT_REPRODUCED),
            ("about", 5.0, 0.1, NOT_REPRODUCED),
        ],
    )
    def test_follows_from_the_whole_interval(self, relation: str, target: float, tolerance: float, verdict: str):
        expectation = claim(relation=relation, target=target, tolerance=tolerance)
        assert judge(expectation, records(1, 2, 3)).verdict == verdict

    def test_undecided_states_the_detectable_difference(self):
        # (4.302653 + 1.060660) / sqrt 3 = 3.0965
        assert "detectable difference 3.10" in judge(claim(), records(1, 2, 3)).reason

    def test_equal_seeds_decide_at_the_target_itself(self):
        assert judge(claim(), records(2.5, 2.5)).verdict == REPRODUCED
        assert judge(claim(relation="at_least"), records(2.5, 2.5)).verdict == REPRODUCED

    def test_one_seed_decides_nothing(self):
        finding = judge(claim(), records(1))
        assert finding.verdict == UNDECIDED
        assert "one seed" in finding.reason

    def test_another_scale_is_not_compared_but_measured(self):
        finding = judge(claim(comparable=["paper"]), records(1, 1))
        assert finding.verdict == NOT_COMPARABLE
        assert finding.settings[0].verdict == NOT_COMPARABLE
        assert finding.settings[0].interval.mean == 1.0
        assert "paper" in finding.reason

    def test_the_right_scale_is_compared(self):
        assert judge(claim(comparable=["paper", "cpu"]), records(1, 1)).verdict == REPRODUCED

    def test_settings_that_disagree_leave_it_undecided_and_are_named(self):
        rows = records(1, 1, setting="small") + records(9, 9, setting="large")
        finding = judge(claim(), rows)
        assert finding.verdict == UNDECIDED
        assert finding.reason == "large: not reproduced; small: reproduced"

    def test_settings_that_agree_give_the_common_verdict(self):
        rows = records(1, 1, setting="small") + records(2, 2, setting="large")
        assert judge(claim(), rows).verdict == REPRODUCED

    def test_topologies_are_judged_one_by_one(self):
        rows = records(1, 1, topology="2x1") + records(9, 9, topology="4x2")
        finding = judge(claim(settings=["nano"]), rows)
        assert [(one.setting, one.interval.mean) for one in finding.settings] == [
            ("nano on 2x1 devices", 1.0),
            ("nano on 4x2 devices", 9.0),
        ]
        assert finding.verdict == UNDECIDED

    def test_a_mean_of_several_grounds_says_so(self):
        rows = records(1, 1, ground="loopback") + records(3, 3, ground="nccl")
        (one,) = judge(claim(), rows).settings
        assert (one.setting, one.interval.mean) == ("nano, mean of 2 grounds", 2.0)
        (alone,) = judge(claim(select={"ground": "nccl"}), rows).settings
        assert (alone.setting, alone.interval.mean) == ("nano", 3.0)

    def test_settings_can_be_filtered(self):
        rows = records(1, 1, setting="small") + records(9, 9, setting="large")
        finding = judge(claim(settings=["small", "absent"]), rows)
        assert [one.setting for one in finding.settings] == ["small"]
        assert finding.verdict == REPRODUCED

    def test_mixed_scales_are_an_error(self):
        with pytest.raises(ValueError, match="cpu, paper"):
            judge(claim(), records(1) + records(1, scale="paper"))


class TestSelection:
    def test_rows_of_a_seed_are_averaged(self):
        rows = [
            record(1.0, layer="0"),
            record(3.0, layer="1"),
            record(9.0, method="b"),
            record(9.0, metric="m"),
        ]
        assert judge(claim(), rows).settings[0].by_seed == {0: 2.0}

    def test_lists_admit_several_values(self):
        rows = [record(1.0, layer="0"), record(3.0, layer="1"), record(8.0, layer="all")]
        finding = judge(claim(select={"method": ["a", "b"], "layer": [0, 1]}), rows)
        assert finding.settings[0].by_seed == {0: 2.0}

    def test_horizons_are_numbers_and_layers_text(self):
        rows = [record(1.0, horizon=10, layer="0"), record(3.0, horizon=100, layer="0")]
        finding = judge(claim(select={"horizon": "10", "layer": 0}), rows)
        assert finding.settings[0].by_seed == {0: 1.0}

    def test_ratio_to_a_floor_is_taken_row_by_row(self):
        rows = [record(2.0, floor=1.0, floor_empirical=4.0), record(4.0, floor=4.0, floor_empirical=4.0)]
        assert judge(claim(reduce="ratio_to_floor"), rows).settings[0].by_seed == {0: 1.5}
        assert judge(claim(reduce="ratio_to_empirical_floor"), rows).settings[0].by_seed == {0: 0.75}


class TestPairs:
    ROWS = (*records(3, 5, 4), *records(1, 2, 3, method="b"))

    def test_difference_by_seed(self):
        finding = judge(claim(than={"method": "b"}, target=0), self.ROWS)
        assert finding.settings[0].by_seed == {0: 2.0, 1: 3.0, 2: 1.0}
        # 2 +- 2.484 again
        assert finding.verdict == UNDECIDED

    def test_pairing_finds_what_unpaired_means_would_not(self):
        rows = records(1, 20, 300) + records(2, 21, 301, method="b")
        assert judge(claim(than={"method": "b"}, target=-0.5), rows).verdict == REPRODUCED

    def test_quotient_by_seed(self):
        finding = judge(claim(than={"method": "b"}, reduce="ratio"), self.ROWS)
        assert finding.settings[0].by_seed == {0: 3.0, 1: 2.5, 2: pytest.approx(4 / 3)}

    def test_ratio_to_the_best_of_several_is_taken_seed_by_seed(self):
        rows = [*records(2, 2, 2), *records(4, 1, 1, method="b"), *records(1, 4, method="c")]
        finding = judge(claim(than={"method": ["b", "c"]}, reduce="ratio_to_best"), rows)
        # the third seed lacks one of them, so nobody knows its best
        assert finding.settings[0].by_seed == {0: 2.0, 1: 2.0}

    def test_difference_of_ratios_to_the_floor(self):
        rows = [record(4.0, floor=2.0), record(3.0, floor=1.0, method="b")]
        finding = judge(claim(than={"method": "b"}, reduce="ratio_to_floor"), rows)
        assert finding.settings[0].by_seed == {0: -1.0}

    def test_a_seed_without_partner_is_left_out_and_named(self):
        rows = [*records(1, 1, 1), *records(2, 2, method="b")]
        finding = judge(claim(than={"method": "b"}, target=0), rows)
        assert finding.settings[0].by_seed == {0: -1.0, 1: -1.0}
        assert finding.verdict == REPRODUCED
        assert "without a partner: seed 2" in finding.reason

    def test_division_by_zero_is_undecided(self):
        rows = [*records(1, 1), *records(0, 1, method="b")]
        finding = judge(claim(than={"method": "b"}, reduce="ratio"), rows)
        assert finding.verdict == UNDECIDED
        assert "no finite value: seed 0" in finding.reason


class TestMissing:
    def test_no_rows_at_all(self):
        finding = judge(claim(), [])
        assert (finding.verdict, finding.scale, finding.settings) == (UNDECIDED, "-", ())
        assert finding.reason == "no records: metric=error, method=a"

    def test_no_matching_rows(self):
        assert judge(claim(select={"method": ["x", "y"]}), records(1, 2)).reason == (
            "no records: metric=error, method=x or y"
        )

    def test_no_setting_of_those_asked_for(self):
        assert judge(claim(settings=["large"]), records(1, 2)).reason.endswith("setting=large")

    def test_one_side_of_a_pair(self):
        finding = judge(claim(than={"method": "lstm"}), records(1, 2))
        assert finding.verdict == UNDECIDED
        assert "paired with method=lstm" in finding.reason

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_seed_without_a_number_is_never_dropped_in_silence(self, value: float):
        finding = judge(claim(), records(1, 1, value))
        assert finding.verdict == UNDECIDED
        assert finding.reason == "no finite value: seed 2"
        assert finding.settings[0].interval.mean == 1.0

    def test_never_in_any_seed_is_an_answer(self):
        assert judge(claim(), records(math.inf, math.inf)).verdict == NOT_REPRODUCED

    def test_no_floor_is_no_value(self):
        assert judge(claim(reduce="ratio_to_floor"), records(1, 2)).verdict == UNDECIDED


class TestSpelling:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"relation": "below"}, "below"),
            ({"reduce": "median"}, "median"),
            ({"format": "bytes"}, "bytes"),
            ({"source": "somewhere"}, "somewhere"),
            ({"settngs": ["nano"]}, "settngs"),
            ({"metric": None}, "metric"),
            ({"target": "small"}, "small"),
            ({"select": {"methd": "a"}}, "methd"),
            ({"select": {"horizon": "far"}}, "far"),
            ({"select": "a"}, "'a'"),
            ({"than": {"setting": "nano"}}, "setting"),
            ({"reduce": "ratio"}, "than"),
            ({"reduce": "ratio_to_best"}, "than"),
            ({"relation": "about"}, "tolerance 0.0"),
            ({"relation": "about", "target": 0, "tolerance": 0.1}, "target 0.0"),
        ],
    )
    def test_mistakes_are_named(self, changes: dict[str, Any], named: str):
        with pytest.raises(ValueError, match="'claim'") as error:
            claim(**changes)
        assert named in str(error.value)

    def test_an_item_without_id_is_an_error_too(self):
        with pytest.raises(ValueError, match="id"):
            parse_expectation({key: value for key, value in CLAIM.items() if key != "id"})

    @pytest.mark.parametrize(
        ("source", "mark"),
        [("[P] abstract", "P"), ("[P, Table I] x", "P"), ("[2nd] y", "2nd"), ("ours", "ours")],
    )
    def test_marks(self, source: str, mark: str):
        assert claim(source=source).mark == mark


class TestPrint:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0131, "0.0131"),
            (1.5, "1.50"),
            (12345.6, "12,346"),
            (0.0, "0"),
            (-2.2e-15, "0"),
            (-0.00001, "-1.00e-05"),
            (math.nan, "-"),
            (math.inf, "∞"),
            (-math.inf, "-∞"),
        ],
    )
    def test_three_digits(self, value: float, text: str):
        assert significant(value, digits=3) == text

    def test_units(self):
        percent = claim(format="percent", target=0.013)
        assert (percent.goal, percent.show(0.01312)) == ("≤ 1.3 %", "1.31 %")
        paired = claim(format="percent", target=0, than={"method": "b"})
        assert (paired.goal, paired.show(-0.01)) == ("≤ 0 points", "-1.00 points")
        steps = claim(format="steps", relation="about", target=5000, tolerance=0.2)
        assert (steps.goal, steps.show(4999.6)) == ("≈ 5,000 ± 20 %", "5,000")
