"""What would re-planning while training have brought? A recorded run replayed, plans scored on the loads that came.

python -m benchmarks.replan trace.setting=nano16_unbalanced trace.seed=0 predictor=hedge placement=lpt_swaps

Seconds are modelled: a step waits for the busiest device in each layer, a move for its bytes on the topology's links.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from jaxtyping import Bool, Float, Integer
from omegaconf import DictConfig

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.forecaster import build_predictor, method_name, origins_by_state
from benchmarks.recorded import read_run, with_run
from benchmarks.rows import Rows, mean_where
from models.rebalancing import Rebalancing
from placement.balance import device_load, lower_bound, max_over_mean
from placement.contiguous import contiguous
from placement.cost import CostModel
from placement.movement import migration, relabel
from placement.payoff import Price
from placement.topology import Placement, Topology, widened
from predictors.base import Predictor
from predictors.windows import LastValue

CONTIGUOUS, BOUND = "contiguous", "lower_bound"
# (steps known so far, the current placement) -> the next one
Decide = Callable[[int, Placement], Placement]


class Walk(NamedTuple):
    """A replayed run under one rule, by interval between decisions (O) and layer.

    Attributes:
        max_over_mean: of device loads, mean over the interval's steps.
        busiest: (token, expert) pairs of the busiest device, mean over the interval's steps.
        move_seconds: of the move at the interval's start, modelled.
        moved_bytes: of that move.
    """

    max_over_mean: Float[np.ndarray, "O L"]
    busiest: Float[np.ndarray, "O L"]
    move_seconds: Float[np.ndarray, "O L"]
    moved_bytes: Float[np.ndarray, "O L"]

    def seconds(self, seconds_per_token: float, every: int) -> Float[np.ndarray, "O L"]:
        """Modelled seconds that a step waits for the layer, its share of the move included."""
        return self.busiest * seconds_per_token + self.move_seconds / every


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Replay the run under every rule and score what each interval's steps would have waited for."""
    trace = read_run(config)
    topology: Topology = instantiate(config.topology)
    every, first = config.replay.every, config.replay.first
    cutoffs = np.arange(first, len(trace.step) - every + 1, every)
    if not len(cutoffs):
        raise ValueError(
            f"a trace of {len(trace.step)} steps has no interval of {every} after step {first}: choose smaller "
            "replay.every or replay.first"
        )
    tokens = scaled(trace.tokens, config.price.tokens_per_step)
    price = Price(config.price.seconds_per_token, config.price.bytes_per_expert, CostModel.from_topology(topology))
    rules = build_rules(config, trace.tokens, tokens, topology, price)
    slots = -(-trace.tokens.shape[-1] // topology.num_devices) + config.replay.spare_slots
    start = Placement(widened(contiguous(tokens[0], topology, slots_per_device=slots), slots))
    walks = {name: walk(rule, tokens, cutoffs, every, start, topology, price) for name, rule in rules.items()}
    rows = Rows(config, ground="modelled")
    bound_OL = np.stack([lower_bound(tokens[t : t + every], topology.num_devices).mean(0) for t in cutoffs])
    for state, chosen_OL in origins_by_state(config, trace, cutoffs).items():
        rows.by_layer(
            "device_max_over_mean", mean_where(bound_OL, chosen_OL, axis=0), method=BOUND, horizon=every, state=state
        )
        add_walks(rows, walks, price, every, state, chosen_OL)
    return Measurement(rows.records, data_fingerprint=trace.source.fingerprint())


def scaled(tokens: Integer[np.ndarray, "S L E"], tokens_per_step: float | None) -> Float[np.ndarray, "S L E"]:
    """The same shares with so many (token, expert) pairs a step and layer; None for those recorded."""
    if tokens_per_step is None:
        return tokens.astype(float)
    return tokens * (tokens_per_step / np.maximum(tokens.sum(-1, keepdims=True), 1))


def build_rules(
    config: DictConfig, counts: np.ndarray, tokens: Float[np.ndarray, "S L E"], topology: Topology, price: Price
) -> dict[str, Decide]:
    """Rules by the name they have in the records; forecasts are made from the recorded counts."""
    planner, predictor, every = instantiate(config.placement), build_predictor(config), config.replay.every
    name, first = HydraConfig.get().runtime.choices["placement"], config.replay.first

    def plan(load_LE: np.ndarray, current: Placement) -> Placement:
        found = planner(load_LE, topology, slots_per_device=current.slots_per_device, current=current)
        return relabel(Placement(widened(found, current.slots_per_device)), current, topology)

    def by(one: Predictor) -> Decide:
        return lambda t, current: plan(one.forecast(counts[:t], every).mean(0), current)

    policy = Rebalancing(planner, predictor, **config.policy)
    return {
        CONTIGUOUS: lambda t, current: current,
        f"{name}/once": lambda t, current: plan(counts[:t].mean(0), current) if t == first else current,
        f"{name}/last_value": by(LastValue()),
        f"{name}/{method_name()}": by(predictor),
        f"{name}/{method_name()}/if_it_pays": lambda t, current: (
            policy.propose(tokens[:t], current, topology, price, every).placement
        ),
        f"{name}/oracle": lambda t, current: plan(tokens[t : t + every].mean(0), current),
    }


def walk(
    decide: Decide,
    tokens: Float[np.ndarray, "S L E"],
    cutoffs: Integer[np.ndarray, " O"],
    every: int,
    start: Placement,
    topology: Topology,
    price: Price,
) -> Walk:
    """Replay a run from step to step under one rule."""
    current, found = start, []
    for cutoff in map(int, cutoffs):
        plan = decide(cutoff, current)
        volume = migration(current, plan, topology, price.bytes_per_expert)
        moves_L = volume.bytes.any((1, 2))
        load_HLG = device_load(tokens[cutoff : cutoff + every], plan)
        found.append(
            (
                max_over_mean(load_HLG).mean(0),
                load_HLG.max(-1).mean(0),
                np.where(moves_L, price.cost.seconds(volume), 0.0),
                volume.bytes.sum((1, 2)).astype(float),
            )
        )
        current = plan
    return Walk(*(np.stack(values) for values in zip(*found, strict=True)))


def add_walks(
    rows: Rows, walks: dict[str, Walk], price: Price, every: int, state: str, chosen: Bool[np.ndarray, "O L"]
) -> None:
    """Balance, bytes and modelled seconds of each rule; what it keeps of the oracle's saving, moves paid and unpaid."""
    columns: dict[str, Any] = {"horizon": every, "state": state}
    unpaid = {
        name: _total(one._replace(move_seconds=0 * one.move_seconds), price, every, chosen)
        for name, one in walks.items()
    }
    paid = {name: _total(one, price, every, chosen) for name, one in walks.items()}
    (oracle,) = (name for name in walks if name.endswith("/oracle"))
    possible = unpaid[CONTIGUOUS] - unpaid[oracle]
    for name, one in walks.items():
        rows.by_layer("device_max_over_mean", mean_where(one.max_over_mean, chosen, axis=0), method=name, **columns)
        if not chosen.any():
            continue
        rows.add(
            "moved_bytes_per_step",
            float(one.moved_bytes[chosen].sum() / (chosen.any(1).sum() * every)),
            method=name,
            **columns,
        )
        rows.add("modelled_over_contiguous", paid[name] / paid[CONTIGUOUS], method=name, **columns)
        if possible > 0:
            rows.add("saving_kept", (unpaid[CONTIGUOUS] - unpaid[name]) / possible, method=name, **columns)
            rows.add("saving_kept_net", (unpaid[CONTIGUOUS] - paid[name]) / possible, method=name, **columns)


def _total(one: Walk, price: Price, every: int, chosen: Bool[np.ndarray, "O L"]) -> float:
    return float(one.seconds(price.seconds_per_token, every)[chosen].sum())


@hydra.main(config_path="../conf", config_name="replan", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_run(config)
        choices = HydraConfig.get().runtime.choices
        labels = [config.setting, f"seed{config.seed}", choices["placement"], method_name(), str(config.replay.every)]
        run_cell(config, labels, measure)


if __name__ == "__main__":
    main()
