"""The tables of a report: findings and records as text, ready for a template or a terminal."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.expectation import significant
from benchmarks.record import Cell, Record
from benchmarks.results import Experiment
from benchmarks.verdict import (
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Finding,
    Interval,
    SettingFinding,
    over_seeds,
)

# beyond this a page is no longer read; the rest is in records.csv
MOST_ROWS = 400
MOST_NAMED = 6
# never colour alone
SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", UNDECIDED: "?", NOT_COMPARABLE: "≠"}


@dataclass(frozen=True)
class SettingRow:
    """One setting's part in a verdict."""

    setting: str
    measured: str
    by_seed: str
    seeds: int
    detectable: str
    verdict: str
    sign: str
    reason: str


@dataclass(frozen=True)
class ClaimRow:
    """One claim: what was published beside what was measured."""

    experiment: str
    id: str
    claim: str
    mark: str
    source: str
    published: str
    goal: str
    measures: str
    scale: str
    verdict: str
    sign: str
    reason: str
    settings: tuple[SettingRow, ...]

    @property
    def seeds(self) -> str:
        """How many seeds, once if it is the same number in every setting."""
        counts = [str(one.seeds) for one in self.settings] or ["0"]
        return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


@dataclass(frozen=True)
class RecordRow:
    """The mean over seeds of one metric under one condition."""

    metric: str
    method: str
    horizon: str
    state: str
    layer: str
    value: str
    floor: str
    seeds: int


def claim_rows(experiment: Experiment) -> list[ClaimRow]:
    """The verdict table of one experiment."""
    return [_claim_row(experiment.name, finding) for finding in experiment.findings]


def record_tables(records: Sequence[Record]) -> dict[str, list[RecordRow]]:
    """Setting, topology and ground -> every metric under every condition; layers only where no mean over them is."""
    with_mean = {(record.metric, record.method) for record in records if record.layer == "all"}
    groups: dict[str, dict[tuple, list[Record]]] = {}
    for r in records:
        if r.layer == "all" or (r.metric, r.method) not in with_mean:
            key = (r.metric, r.state, r.horizon, r.layer, r.method)
            groups.setdefault(f"{r.where}, {r.ground}", {}).setdefault(key, []).append(r)
    return {
        where: [_record_row(key, rows) for key, rows in sorted(by_key.items())]
        for where, by_key in sorted(groups.items())
    }


def provenance(records: Sequence[Record], cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """What the records rest on, as (what, text) pairs; what nobody noted is left out."""
    facts = {
        "scale": _distinct(record.scale for record in records),
        "ground": _distinct(record.ground for record in records),
        "settings": _distinct(record.setting for record in records),
        # what compares several runs is of no one seed
        "seeds": _distinct(record.seed for record in records if record.seed >= 0),
        "machine": "; ".join(sorted({cell.machine for cell in cells})),
        "versions": _versions(cells),
        "commit": _distinct(_commit(cell.commit) for cell in cells),
        "data": _distinct(cell.data_fingerprint for cell in cells),
        "recorded": _span(cell.recorded for cell in cells),
        "computing time": _duration(math.fsum(cell.seconds for cell in cells)),
    }
    return [(name, text) for name, text in facts.items() if text]


def measured_text(finding: Finding, one: SettingFinding) -> str:
    """E.g. "1.31 % [1.20, 1.42]"; the mean alone for a single seed."""
    claim, interval = finding.expectation, one.interval
    if not interval.count:
        return "-"
    if math.isnan(interval.low):
        return claim.show(interval.mean)
    return f"{claim.show(interval.mean)} [{claim.show_bare(interval.low)}, {claim.show_bare(interval.high)}]"


def _claim_row(experiment: str, finding: Finding) -> ClaimRow:
    claim = finding.expectation
    return ClaimRow(
        experiment=experiment,
        id=claim.id,
        claim=claim.claim,
        mark=claim.mark,
        source=claim.source,
        published=claim.published,
        goal=claim.goal,
        measures=claim.describe(),
        scale=finding.scale,
        verdict=finding.verdict,
        sign=SIGNS[finding.verdict],
        reason=finding.reason,
        settings=tuple(_setting_row(finding, one) for one in finding.settings),
    )


def _setting_row(finding: Finding, one: SettingFinding) -> SettingRow:
    show = finding.expectation.show
    return SettingRow(
        setting=one.setting,
        measured=measured_text(finding, one),
        by_seed=", ".join(f"{seed}: {finding.expectation.show_bare(value)}" for seed, value in one.by_seed.items())
        or "-",
        seeds=one.interval.count,
        detectable=show(one.interval.detectable),
        verdict=one.verdict,
        sign=SIGNS[one.verdict],
        reason=one.reason,
    )


def _record_row(key: tuple, rows: list[Record]) -> RecordRow:
    metric, state, horizon, layer, method = key
    interval, floor = over_seeds(rows), over_seeds(rows, "floor")
    return RecordRow(
        metric=metric,
        method=method,
        horizon=f"{horizon:,}" if horizon else "-",
        state=state,
        layer=layer,
        value=_with_half_width(interval),
        floor=significant(floor.mean, 4),
        seeds=interval.count,
    )


def _with_half_width(interval: Interval) -> str:
    half = interval.high - interval.mean
    text = significant(interval.mean, 4)
    return f"{text} ± {significant(half, 2)}" if math.isfinite(half) else text


def _distinct(values: Iterable[Any]) -> str:
    found = [str(value) for value in sorted(set(values) - {""})]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _commit(commit: str) -> str:
    return f"{commit[:-1]} with local changes" if commit.endswith("+") else commit


def _span(days: Iterable[str]) -> str:
    noted = sorted(set(days) - {""})
    return " to ".join(sorted({noted[0], noted[-1]})) if noted else ""


def _versions(cells: Iterable[Cell]) -> str:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for package, version in cell.versions.items():
            found.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(found[package]))}" for package in sorted(found))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds else ""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
