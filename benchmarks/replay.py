"""A recorded run replayed with experts that move between its steps: what each interval's steps would have waited for.

Seconds are modelled: a step waits for the busiest device in each layer, a move for its bytes on the topology's links.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from benchmarks.rows import Rows, mean_where
from placement.balance import balance, device_load
from placement.movement import migration
from placement.payoff import Price
from placement.topology import Placement, Topology

CONTIGUOUS, BOUND, ORACLE = "contiguous", "lower_bound", "oracle"
# (steps known so far, the current placement) -> the next one
Decide = Callable[[int, Placement], Placement]


@dataclass(frozen=True, eq=False)
class Walk:
    """A replayed run under one rule, by interval between decisions (O) and layer.

    Attributes:
        balance: of device loads under each of its names, mean over the interval's steps.
        busiest: (token, expert) pairs of the busiest device, mean over the interval's steps.
        move_seconds: of the move at the interval's start, modelled.
        moved_bytes: of that move.
    """

    balance: dict[str, Float[np.ndarray, "O L"]]
    busiest: Float[np.ndarray, "O L"]
    move_seconds: Float[np.ndarray, "O L"]
    moved_bytes: Float[np.ndarray, "O L"]

    def seconds(self, seconds_per_token: float, every: int, paid: bool = True) -> Float[np.ndarray, "O L"]:
        """Modelled seconds that a step waits for the layer, with its share of the move or without."""
        return self.busiest * seconds_per_token + paid * self.move_seconds / every


def walk(
    decide: Decide,
    tokens: Float[np.ndarray, "S L E"],
    cutoffs: Integer[np.ndarray, " O"],
    every: int,
    start: Placement,
    topology: Topology,
    price: Price,
) -> Walk:
    """Replay a run from interval to interval under one rule."""
    current, balances, waits, moves = start, list[dict[str, np.ndarray]](), [], []
    for cutoff in map(int, cutoffs):
        plan = decide(cutoff, current)
        volume = migration(current, plan, topology, price.bytes_per_expert)
        load_HLG = device_load(tokens[cutoff : cutoff + every], plan)
        balances.append({name: values_HL.mean(0) for name, values_HL in balance(load_HLG).items()})
        waits.append(load_HLG.max(-1).mean(0))
        seconds_L = np.where(volume.bytes.any((1, 2)), price.cost.seconds(volume), 0.0)
        moves.append((seconds_L, volume.bytes.sum((1, 2)).astype(float)))
        current = plan
    by_name = {name: np.stack([one[name] for one in balances]) for name in balances[0]}
    move_seconds, moved_bytes = (np.stack(values) for values in zip(*moves, strict=True))
    return Walk(by_name, np.stack(waits), move_seconds, moved_bytes)


def add_walks(
    rows: Rows, walks: dict[str, Walk], price: Price, every: int, state: str, chosen: Bool[np.ndarray, "O L"]
) -> None:
    """Balance, bytes and modelled seconds of each rule, beside the contiguous placement's and the oracle's."""
    columns: dict[str, Any] = {"horizon": every, "state": state}
    for name, one in walks.items():
        for measure, values_OL in one.balance.items():
            rows.by_layer(f"device_{measure}", mean_where(values_OL, chosen, axis=0), method=name, **columns)
    if not chosen.any():
        return

    def total(name: str, paid: bool) -> float:
        return float(walks[name].seconds(price.seconds_per_token, every, paid)[chosen].sum())

    fixed, known = total(CONTIGUOUS, paid=True), total(oracle_of(walks), paid=False)
    steps = chosen.any(1).sum() * every
    for name, one in walks.items():
        paid, unpaid = total(name, paid=True), total(name, paid=False)
        rows.add("moved_bytes_per_step", float(one.moved_bytes[chosen].sum() / steps), method=name, **columns)
        rows.add("modelled_over_contiguous", paid / fixed, method=name, **columns)
        rows.add("regret", paid / known - 1, method=name, **columns)
        if fixed > known:
            rows.add("saving_kept", (fixed - unpaid) / (fixed - known), method=name, **columns)
            rows.add("saving_kept_net", (fixed - paid) / (fixed - known), method=name, **columns)


def oracle_of(methods: Iterable[str]) -> str:
    """The one rule among those of a cell that knows the loads to come."""
    (oracle,) = (method for method in methods if method.endswith(f"/{ORACLE}"))
    return oracle
