"""One line a router: what it costs in quality, what it sends, and how even it keeps experts and devices.

Made from the records of `benchmarks.route_volume`, whose methods are named "router/placement".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.record import Record
from benchmarks.tables import with_half_width
from benchmarks.verdict import Interval, over_seeds

# a metric that only these experiments have
SENT = "copies/per_device"
LOSS, BITS = "held_out/all", "bits_per_byte/all"
LATER = "/seeing_later_tokens"
# head -> metric, in the order of the columns
COLUMNS = {
    "held-out nats": LOSS,
    "above plain": "held_out_over_plain",
    "bits a byte": BITS,
    "devices a token": "distinct_devices",
    "copies, one a device": SENT,
    "bytes, one an expert": "bytes/per_expert",
    "one a device": "bytes/per_device",
    "one a node": "bytes/per_node",
    "busiest device's bytes": "busiest_device_bytes/per_device",
    "device load, max / mean": "device_max_over_mean",
    "expert load, max / mean": "expert_max_over_mean",
    "experts a token": "experts_per_token",
    "collaboration degree": "collaboration_degree",
}

Measured = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class RouterRow:
    """A router on a placement: a text for each of `COLUMNS`; a router that sees later tokens is marked."""

    method: str
    sees_later_tokens: bool
    texts: tuple[str, ...]


def router_tables(records: Sequence[Record]) -> dict[str, list[RouterRow]]:
    """Setting -> a row a method, lowest held-out loss first; routers that see later tokens stand last."""
    return {
        setting: [_row(method, found[method]) for method in sorted(found, key=lambda one: _rank(one, found[one]))]
        for setting, found in measured(records).items()
    }


def measured(records: Iterable[Record]) -> dict[str, Measured]:
    """Setting -> method -> metric -> its interval over seeds, of methods whose volume was counted."""
    groups: dict[str, dict[str, dict[str, list[Record]]]] = {}
    for record in records:
        if record.layer == "all":
            of_method = groups.setdefault(record.setting, {}).setdefault(record.method, {})
            of_method.setdefault(record.metric, []).append(record)
    found = {
        setting: {
            method: {metric: over_seeds(rows) for metric, rows in by_metric.items()}
            for method, by_metric in sorted(by_method.items())
            if SENT in by_metric
        }
        for setting, by_method in sorted(groups.items())
    }
    return {setting: by_method for setting, by_method in found.items() if by_method}


def half_width(interval: Interval) -> float:
    """Half of an interval's width, NaN where there is none."""
    return interval.high - interval.mean


def _row(method: str, found: dict[str, Interval]) -> RouterRow:
    texts = [with_half_width(one) if (one := _of(found, metric)) else "-" for metric in COLUMNS.values()]
    return RouterRow(method, _sees_later_tokens(found), tuple(texts))


def _of(found: dict[str, Interval], metric: str) -> Interval | None:
    return found.get(metric) or found.get(f"{metric}{LATER}")


def _sees_later_tokens(found: dict[str, Interval]) -> bool:
    return "causal" in found and found["causal"].mean == 0


def _rank(method: str, found: dict[str, Interval]) -> tuple[bool, float, str]:
    loss = _of(found, LOSS)
    return _sees_later_tokens(found), loss.mean if loss else np.inf, method
