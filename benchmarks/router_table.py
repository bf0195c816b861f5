"""One line a router: what it costs in quality, what it sends, and how even it keeps experts and devices.

Made from the records of `benchmarks.route_volume`, whose methods are named "router/placement".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.expectation import significant
from benchmarks.record import Record
from benchmarks.router_figures import SENT, measured
from benchmarks.verdict import Interval

LOSS, BITS = "held_out/all", "bits_per_byte/all"
LATER = "/seeing_later_tokens"
MOST_DECIMALS = 5
# head -> metric, in the order of the columns
COLUMNS = {
    "held-out nats": LOSS,
    "above plain": "held_out_over_plain",
    "bits a byte": BITS,
    "devices a token": "distinct_devices",
    "copies, one a device": SENT,
    "bytes, one an expert": "bytes/per_expert",
    "bytes, one a device": "bytes/per_device",
    "bytes, one a node": "bytes/per_node",
    "busiest device's bytes": "busiest_device_bytes/per_device",
    "device load, max / mean": "device_max_over_mean",
    "expert load, max / mean": "expert_max_over_mean",
    "experts a token": "experts_per_token",
    "collaboration degree": "collaboration_degree",
}


@dataclass(frozen=True)
class RouterRow:
    """A router on a placement: a text for each of `COLUMNS`; a router that sees later tokens is marked."""

    method: str
    sees_later_tokens: bool
    texts: tuple[str, ...]


def router_tables(records: Sequence[Record]) -> dict[str, list[RouterRow]]:
    """Setting and topology -> a row a method, lowest held-out loss first; routers that see later tokens stand last."""
    return {
        setting: [_row(method, found[method]) for method in sorted(found, key=lambda one: _rank(one, found[one]))]
        for setting, found in measured(records).items()
    }


def interval_text(interval: Interval) -> str:
    """Mean and half its interval to the half's second digit, e.g. "-0.0074 ± 0.0019"; four digits of a mean alone."""
    half = interval.high - interval.mean
    if not half > 0:
        return significant(interval.mean, 4) + (" ± 0" if half == 0 else "")
    decimals = min(max(1 - math.floor(math.log10(half)), 0), MOST_DECIMALS)
    return f"{interval.mean:,.{decimals}f} ± {half:,.{decimals}f}"


def _row(method: str, found: dict[str, Interval]) -> RouterRow:
    texts = [interval_text(one) if (one := _of(found, metric)) else "-" for metric in COLUMNS.values()]
    return RouterRow(method, _sees_later_tokens(found), tuple(texts))


def _of(found: dict[str, Interval], metric: str) -> Interval | None:
    return found.get(metric) or found.get(f"{metric}{LATER}")


def _sees_later_tokens(found: dict[str, Interval]) -> bool:
    return "causal" in found and found["causal"].mean == 0


def _rank(method: str, found: dict[str, Interval]) -> tuple[bool, float, str]:
    loss = _of(found, LOSS)
    return _sees_later_tokens(found), loss.mean if loss else math.inf, method
