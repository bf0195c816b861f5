"""A published claim in the terms of the records: one item of an experiment's `expect:`."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RELATIONS = {"at_most": "≤", "at_least": "≥", "about": "≈"}
# those that compare by a ratio with the other side
RATIOS = ("ratio", "ratio_to_best")
REDUCTIONS = ("value", "ratio_to_floor", "ratio_to_empirical_floor", *RATIOS)
FORMATS = ("percent", "number", "steps")
# the columns a claim may select by, as their types in a record; `settings` has its own key
SELECTABLE: dict[str, type] = {"method": str, "metric": str, "state": str, "layer": str, "ground": str}
SELECTABLE |= {"horizon": int, "seed": int}
SOURCE_MARK = re.compile(r"\[(P|C|M|I|2nd|\?)[^\]]*\]|ours")


@dataclass(frozen=True)
class Expectation:
    """One published claim, in the terms of the records; see conf/experiment for the spelling.

    Attributes:
        select: column -> admitted values. Rows matching it and `metric` are what was measured.
        than: changes to `select` that give the other side of a paired comparison, None where there is none.
        settings: the settings looked at, empty for all.
        comparable: scales at which published and measured may be compared, empty for all.
        reduce: what becomes of a row before averaging; "ratio_to_best" is over the seed's least of `than`'s methods.
        tolerance: relative half-width of `about`.

    Raises:
        ValueError: a name or value that has no meaning here; the message names `id` and the value.
    """

    id: str
    claim: str
    source: str
    metric: str
    relation: str
    target: float
    select: dict[str, tuple[Any, ...]]
    published: str = "-"
    than: dict[str, tuple[Any, ...]] | None = None
    settings: tuple[str, ...] = ()
    comparable: tuple[str, ...] = ()
    reduce: str = "value"
    tolerance: float = 0.0
    format: str = "number"

    def __post_init__(self) -> None:
        self._one_of("relation", RELATIONS)
        self._one_of("reduce", REDUCTIONS)
        self._one_of("format", FORMATS)
        if not SOURCE_MARK.match(self.source):
            raise ValueError(f"expect {self.id!r}: source must start with [P] or the like, got {self.source!r}")
        if self.reduce in RATIOS and self.than is None:
            raise ValueError(f"expect {self.id!r}: reduce {self.reduce!r} needs `than`")
        if self.relation == "about" and not (self.tolerance > 0 and self.target):
            raise ValueError(
                f"expect {self.id!r}: `about` needs a positive relative tolerance and a target other than 0, "
                f"got tolerance {self.tolerance} and target {self.target}"
            )

    def _one_of(self, name: str, admitted: Iterable[str]) -> None:
        if getattr(self, name) not in admitted:
            known = ", ".join(admitted)
            raise ValueError(f"expect {self.id!r}: unknown {name} {getattr(self, name)!r}, not one of {known}")

    @property
    def mark(self) -> str:
        """Where the published figure was found: "P" text, "C" code, "M" measured, "I" inferred, "ours"."""
        match = SOURCE_MARK.match(self.source)
        assert match
        return match[1] or match[0]

    @property
    def goal(self) -> str:
        """The relation in print, e.g. "≤ 1.3 %"."""
        band = f" ± {100 * self.tolerance:g} %" if self.relation == "about" else ""
        scaled = 100 * self.target if self.format == "percent" else self.target
        target = f"{scaled:,.0f}" if self.format == "steps" else f"{scaled:.6g}"
        return f"{RELATIONS[self.relation]} {target}{self.unit}{band}"

    @property
    def selection(self) -> dict[str, tuple[Any, ...]]:
        """Column -> admitted values of the rows that are measured, the metric among them."""
        return {"metric": (self.metric,), **self.select}

    def describe(self) -> str:
        """The rows asked for, e.g. "metric=relative_error, method=sw_avg_100"."""
        only = {"setting": self.settings} if self.settings else {}
        text = _describe_rows({**self.selection, **only})
        return text if self.than is None else f"{text}, paired with {_describe_rows(self.than)}"

    @property
    def unit(self) -> str:
        """What is written after a measured value; a difference of percentages is in points."""
        is_difference = self.than is not None and self.reduce == "value"
        return "" if self.format != "percent" else " points" if is_difference else " %"

    def show(self, value: float) -> str:
        """A measured value in the claim's own format and unit, e.g. "1.31 %"."""
        return self.show_bare(value) + self.unit

    def show_bare(self, value: float) -> str:
        """The same without the unit."""
        if self.format == "steps" and math.isfinite(value):
            return f"{value:,.0f}"
        return significant(100 * value if self.format == "percent" else value, digits=3)


def parse_expectation(item: Mapping[str, Any]) -> Expectation:
    """An `Expectation` from an item of `expect:`; ValueError where a key is unknown, missing or of no use."""
    name = item.get("id", "(no id)")
    known = {f.name: f for f in dataclasses.fields(Expectation)}
    if unknown := sorted(set(item) - set(known)):
        raise ValueError(f"expect {name!r}: unknown key {', '.join(map(repr, unknown))}")
    required = [key for key, f in known.items() if f.default is dataclasses.MISSING]
    if missing := [key for key in required if item.get(key) is None]:
        raise ValueError(f"expect {name!r}: missing {', '.join(map(repr, missing))}")
    values = {key: value for key, value in item.items() if value is not None}
    for key in {"select", "than"} & set(values):
        values[key] = _parse_select(name, values[key])
    for key in {"settings", "comparable"} & set(values):
        values[key] = tuple(map(str, _listed(values[key])))
    for key in {"target", "tolerance"} & set(values):
        values[key] = _parse_number(name, key, values[key])
    return Expectation(**values)


def expectations_fingerprint(items: Any) -> str:
    """Twelve hex digits of what `expect:` judges by: not of how a claim is worded or where it comes from."""
    told = {"claim", "source", "published", "format"}
    judged = [{key: value for key, value in item.items() if key not in told} for item in items]
    return hashlib.sha256(json.dumps(judged, sort_keys=True).encode()).hexdigest()[:12]


def significant(value: float, digits: int) -> str:
    """A number in print, trailing zeros kept: "1.50" and "12,346" for three digits, "-" for NaN."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "∞" if value > 0 else "-∞"
    # what rounding leaves of equal numbers; nothing measured here is so small
    if abs(value) < 1e-12:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def _parse_select(name: str, select: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(select, Mapping):
        raise ValueError(f"expect {name!r}: select and than map columns to values, got {select!r}")
    parsed = {}
    for column, value in select.items():
        if column not in SELECTABLE:
            raise ValueError(f"expect {name!r}: cannot select by {column!r}, only by {', '.join(SELECTABLE)}")
        try:
            parsed[column] = tuple(SELECTABLE[column](one) for one in _listed(value))
        except (TypeError, ValueError):
            raise ValueError(f"expect {name!r}: {column} cannot be {value!r}") from None
    return parsed


def _parse_number(name: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expect {name!r}: {key} must be a number, got {value!r}") from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _describe_rows(rows: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{column}={' or '.join(map(str, admitted))}" for column, admitted in rows.items())
