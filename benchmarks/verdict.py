"""Published beside measured: is a claim borne out by the records?

Rows that match a claim are averaged per (setting, seed); seeds are the replicates. The 95 % t interval over a
setting's seeds decides:

    reproduced          the whole interval satisfies the relation
    not reproduced      the whole interval violates it
    undecided           neither, or no interval; the smallest difference this design could detect is stated
    not comparable      the claim is about another scale
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from benchmarks.expectation import RATIOS, Expectation
from benchmarks.record import Record

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided"
NOT_COMPARABLE = "not comparable at this scale"

Side = Literal["satisfied", "violated", "both"]


@dataclass(frozen=True)
class Interval:
    """Mean of replicates with its 95 % t interval; the interval is NaN for fewer than two replicates."""

    mean: float
    low: float
    high: float
    detectable: float
    count: int


@dataclass(frozen=True)
class SettingFinding:
    """What one setting, on one topology, says about a claim."""

    setting: str
    verdict: str
    reason: str
    interval: Interval
    by_seed: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What the records say about a claim, over all settings."""

    expectation: Expectation
    scale: str
    verdict: str
    reason: str
    settings: tuple[SettingFinding, ...]


def confidence_interval(values: Sequence[float]) -> Interval:
    """95 % t interval of the mean, and the difference found with 80 % power in a two-sided 5 % test."""
    count = len(values)
    mean = float(np.mean(values)) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, math.nan, count)
    if not math.isfinite(mean):
        # infinite in every seed is as certain as it can be, in some seeds nothing is
        edge = mean if len(set(values)) == 1 else math.nan
        return Interval(mean, edge, edge, math.nan, count)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    t_two_sided, t_power = stats.t.ppf([0.975, 0.8], count - 1)
    half = float(t_two_sided) * error
    return Interval(mean, mean - half, mean + half, float(t_two_sided + t_power) * error, count)


def over_seeds(records: Iterable[Record], column: str = "value") -> Interval:
    """Interval over seeds of a column, each seed's rows averaged first; NaN is left out."""
    seeds: dict[int, list[float]] = {}
    for record in records:
        if not math.isnan(value := getattr(record, column)):
            seeds.setdefault(record.seed, []).append(value)
    return confidence_interval([float(np.mean(values)) for _, values in sorted(seeds.items())])


def judge(expectation: Expectation, records: Sequence[Record]) -> Finding:
    """The verdict that an experiment's records give on one claim. Missing rows are a reason, never an error.

    Raises:
        ValueError: the records are of more than one scale.
    """
    scales = sorted({record.scale for record in records})
    if len(scales) > 1:
        raise ValueError(f"records of one experiment must share a scale, got {', '.join(scales)}")
    admitted = [record for record in records if record.setting in (expectation.settings or (record.setting,))]
    measured, unpaired = _measure(expectation, admitted)
    is_comparable = not scales or not expectation.comparable or scales[0] in expectation.comparable
    found = tuple(
        _judge_setting(
            expectation,
            name + _pooled(expectation, name, admitted),
            measured.get(name, {}),
            unpaired.get(name, []),
            is_comparable,
        )
        for name in sorted(measured)
    )
    verdict, reason = _overall(expectation, found, is_comparable)
    return Finding(expectation, scales[0] if scales else "-", verdict, reason, found)


def _pooled(expectation: Expectation, where: str, records: Sequence[Record]) -> str:
    """What a reader must know of a figure that averages several grounds."""
    chosen = expectation.selection.items()
    mine = [one for one in records if one.where == where]
    grounds = {one.ground for one in mine if all(getattr(one, column) in admitted for column, admitted in chosen)}
    return f", mean of {len(grounds)} grounds" if len(grounds) > 1 else ""


def _measure(
    expectation: Expectation, records: Sequence[Record]
) -> tuple[dict[str, dict[int, float]], dict[str, list[int]]]:
    """Setting -> seed -> figure, and setting -> seeds that a comparison found on one side only."""
    select = expectation.selection
    left = _by_setting_and_seed(expectation.reduce, select, records)
    if expectation.than is None:
        return left, {}
    right = _other_side(expectation, records)
    combine = np.divide if expectation.reduce in RATIOS else np.subtract
    paired, unpaired = {}, {}
    for setting in left.keys() | right.keys():
        one, other = left.get(setting, {}), right.get(setting, {})
        with np.errstate(divide="ignore", invalid="ignore"):
            both = sorted(one.keys() & other.keys())
            paired[setting] = {seed: float(combine(one[seed], other[seed])) for seed in both}
        unpaired[setting] = sorted(one.keys() ^ other.keys())
    return paired, unpaired


def _other_side(expectation: Expectation, records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """What is compared with: the mean of all rows, or of each seed's best method, chosen in hindsight."""
    assert expectation.than is not None
    other = {**expectation.selection, **expectation.than}
    if expectation.reduce != "ratio_to_best":
        return _by_setting_and_seed(expectation.reduce, other, records)
    of_each = [_by_setting_and_seed("ratio", {**other, "method": (method,)}, records) for method in other["method"]]
    seeds = {setting: set.intersection(*(set(one.get(setting, {})) for one in of_each)) for setting in of_each[0]}
    return {
        setting: {seed: min(one[setting][seed] for one in of_each) for seed in common}
        for setting, common in seeds.items()
    }


def _by_setting_and_seed(
    reduce: str, select: Mapping[str, tuple[Any, ...]], records: Sequence[Record]
) -> dict[str, dict[int, float]]:
    rows: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if all(getattr(record, column) in admitted for column, admitted in select.items()):
            rows.setdefault((record.where, record.seed), []).append(_reduced(reduce, record))
    measured: dict[str, dict[int, float]] = {}
    for (setting, seed), values in sorted(rows.items()):
        measured.setdefault(setting, {})[seed] = float(np.mean(values))
    return measured


def _reduced(reduce: str, record: Record) -> float:
    if reduce in ("value", *RATIOS):
        return record.value
    floor = record.floor if reduce == "ratio_to_floor" else record.floor_empirical
    return record.value / floor if floor else math.nan


def _judge_setting(
    expectation: Expectation,
    setting: str,
    by_seed: dict[int, float],
    unpaired: list[int],
    is_comparable: bool,
) -> SettingFinding:
    values = list(by_seed.values())
    lost = [seed for seed, value in by_seed.items() if not math.isfinite(value)]
    if lost and set(values) not in ({math.inf}, {-math.inf}):
        values = [value for value in values if math.isfinite(value)]
    interval = confidence_interval(values)
    verdict, reason = _decide(expectation, interval, lost)
    if unpaired:
        reason = f"{reason}; without a partner: seed {_join(unpaired)}".removeprefix("; ")
    if not is_comparable:
        verdict, reason = NOT_COMPARABLE, "" if values else reason
    return SettingFinding(setting, verdict, reason, interval, by_seed)


def _decide(expectation: Expectation, interval: Interval, lost: list[int]) -> tuple[str, str]:
    if not interval.count and not lost:
        return UNDECIDED, f"no records: {expectation.describe()}"
    if lost and not math.isinf(interval.mean):
        return UNDECIDED, f"no finite value: seed {_join(lost)}"
    if interval.count < 2:
        return UNDECIDED, "one seed: no interval, so no difference could be detected"
    side = _side(expectation, interval)
    if side == "both":
        return UNDECIDED, f"smallest detectable difference {expectation.show(interval.detectable)}"
    return (REPRODUCED if side == "satisfied" else NOT_REPRODUCED), ""


def _side(expectation: Expectation, interval: Interval) -> Side:
    """Which side of the relation the whole interval lies on."""
    slack = abs(expectation.target) * expectation.tolerance if expectation.relation == "about" else 0.0
    lowest = -math.inf if expectation.relation == "at_most" else expectation.target - slack
    highest = math.inf if expectation.relation == "at_least" else expectation.target + slack
    if lowest <= interval.low and interval.high <= highest:
        return "satisfied"
    return "violated" if interval.high < lowest or interval.low > highest else "both"


def _overall(expectation: Expectation, found: tuple[SettingFinding, ...], is_comparable: bool) -> tuple[str, str]:
    if not is_comparable:
        return NOT_COMPARABLE, f"the claim is about scale {_join(expectation.comparable)}"
    if not found:
        return UNDECIDED, f"no records: {expectation.describe()}"
    if len({one.verdict for one in found}) > 1:
        return UNDECIDED, "; ".join(f"{one.setting}: {one.verdict}" for one in found)
    reasons = {one.setting: one.reason for one in found if one.reason}
    if len(found) == 1:
        return found[0].verdict, found[0].reason
    return found[0].verdict, "; ".join(f"{setting}: {reason}" for setting, reason in reasons.items())


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
