"""What would placing experts by a forecast have brought, moves paid? A recorded run replayed, scored on what came.

python -m benchmarks.place_experts trace.setting=nano16 trace.seed=0 predictor=hedge placement=lpt_swaps
python -m benchmarks.place_experts trace.path=DUMP      # your own loads: forecasts, plans, and whether moving pays
python -m benchmarks.place_experts workload=drifting    # or drawn ones, of conf/workload

Seconds are modelled, see `benchmarks.replay`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from jaxtyping import Float, Int, Integer
from omegaconf import DictConfig, OmegaConf

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.forecaster import build_predictor, method_name, origins_by_state
from benchmarks.record import Record, read_records
from benchmarks.recorded import read_run, read_sampled, with_run
from benchmarks.replay import BOUND, CONTIGUOUS, ORACLE, Decide, add_walks, oracle_of, walk
from benchmarks.rows import Rows, mean_where
from models.rebalancing import Rebalancing
from placement.balance import lower_bound
from placement.contiguous import contiguous
from placement.cost import CostModel
from placement.export import file_format
from placement.payoff import Price
from placement.topology import Placement, Topology, widened
from predictors.backtest import rolling_origins
from predictors.base import Predictor
from predictors.windows import LastValue
from traces.load import LoadTrace, proportions
from traces.routing import ExpertSets, RoutingTrace, count_sets

IF_IT_PAYS = "/if_it_pays"
# of a modelled step, from which on a saving is told as one
NO_DIFFERENCE = 0.01


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Replay the run under every rule, score what each interval's steps would have waited for, plan what comes next."""
    check(config)
    trace, predictor = read_run(config), build_predictor(config)
    topology: Topology = instantiate(config.topology)
    every, cutoffs = config.replay.every, origins(config, trace)
    tokens = scaled(trace.tokens, config.price.tokens_per_step)
    price = Price(config.price.seconds_per_token, config.price.bytes_per_expert, CostModel.from_topology(topology))
    expected = expected_loads(trace.tokens, cutoffs, every, {"last_value": LastValue(), method_name(): predictor})
    slots = -(-trace.num_experts // topology.num_devices) + config.replay.spare_slots
    start = Placement(widened(contiguous(tokens[0], topology, slots_per_device=slots), slots))
    known = Known(trace.step, read_sampled(config))
    rules = build_rules(config, tokens, cutoffs, expected, predictor, topology, price, known)
    walks = {name: walk(rule, tokens, cutoffs, every, start, topology, price) for name, rule in rules.items()}
    bound_OL = least_max_over_mean(tokens, cutoffs, every, start)
    rows = Rows(config, ground="modelled")
    everywhere = {"all": np.ones(bound_OL.shape, bool)}
    for state, chosen_OL in (everywhere | origins_by_state(config, trace, cutoffs)).items():
        add_walks(rows, walks, price, every, state, chosen_OL)
        by_layer = [("device_max_over_mean", BOUND, bound_OL)]
        by_layer += [("total_variation_of_mean", name, _error(one, expected[ORACLE])) for name, one in expected.items()]
        for metric, method, values_OL in by_layer:
            values_L = mean_where(values_OL, chosen_OL, axis=0)
            rows.by_layer(metric, values_L, method=method, horizon=every, state=state)
    write_next(config, trace, predictor, start, topology, known, folder)
    return Measurement(rows.records, data_fingerprint=trace.source.fingerprint())


def check(config: DictConfig) -> None:
    """ValueError names a number that cannot be."""
    least = {"replay.every": 1, "replay.first": 1, "replay.spare_slots": 0, "price.bytes_per_expert": 0}
    for key, value in least.items():
        if (found := OmegaConf.select(config, key)) < value:
            raise ValueError(f"{key} must be at least {value}, got {found}")
    pairs = config.price.tokens_per_step
    if pairs is not None and pairs <= 0:
        raise ValueError(f"price.tokens_per_step must be above 0 (null: as recorded), got {pairs}")


def _error(expected_OLE: Float[np.ndarray, "O L E"], came_OLE: Float[np.ndarray, "O L E"]) -> Float[np.ndarray, "O L"]:
    return np.abs(expected_OLE - came_OLE).sum(-1) / 2


def least_max_over_mean(
    tokens: Float[np.ndarray, "S L E"], cutoffs: Integer[np.ndarray, " O"], every: int, start: Placement
) -> Float[np.ndarray, "O L"]:
    """What no plan can go below; where there is room for replicas that is the mean."""
    has_room = start.num_devices * start.slots_per_device > start.num_experts
    bound_SL = np.ones(tokens.shape[:2]) if has_room else lower_bound(tokens, start.num_devices)
    return np.stack([bound_SL[t : t + every].mean(0) for t in cutoffs])


def origins(config: DictConfig, trace: LoadTrace) -> Integer[np.ndarray, " O"]:
    """Steps before which experts may move; ValueError if no interval fits into the trace, or as rolling_origins."""
    every, first = config.replay.every, config.replay.first
    if first + every > len(trace.step):
        raise ValueError(
            f"a trace of {len(trace.step)} steps has no interval of {every} after step {first}: choose smaller "
            "replay.every or replay.first"
        )
    return rolling_origins(trace, first, stride=every, horizon=every)


def scaled(tokens: Integer[np.ndarray, "S L E"], tokens_per_step: float | None) -> Float[np.ndarray, "S L E"]:
    """The same shares with so many (token, expert) pairs a step and layer; None for those recorded."""
    if tokens_per_step is None:
        return tokens.astype(float)
    return tokens * (tokens_per_step / np.maximum(tokens.sum(-1, keepdims=True), 1))


def expected_loads(
    counts: Integer[np.ndarray, "S L E"],
    cutoffs: Integer[np.ndarray, " O"],
    every: int,
    predictors: dict[str, Predictor],
) -> dict[str, Float[np.ndarray, "O L E"]]:
    """Shares that each forecast expects on average of each interval; the oracle's are those that came."""
    expected = {
        name: np.stack([one.forecast(counts[:t], every).mean(0) for t in cutoffs]) for name, one in predictors.items()
    }
    return expected | {ORACLE: np.stack([proportions(counts[t : t + every]).mean(0) for t in cutoffs])}


class Known(NamedTuple):
    """The routings of a run, of steps `step` (S,); None where none were kept."""

    step: Int[np.ndarray, " S"]
    routing: RoutingTrace | None

    def before(self, done: int) -> list[ExpertSets] | None:
        """The last routing sampled in the first `done` steps; its tokens are taken to start on all devices."""
        if self.routing is None:
            return None
        number = int(np.searchsorted(self.routing.step, self.step[done - 1], side="right"))
        return count_sets(self.routing.expert_indices[number - 1 : number]) if number else None


def build_rules(
    config: DictConfig,
    tokens: Float[np.ndarray, "S L E"],
    cutoffs: Integer[np.ndarray, " O"],
    expected: dict[str, Float[np.ndarray, "O L E"]],
    predictor: Predictor,
    topology: Topology,
    price: Price,
    known: Known,
) -> dict[str, Decide]:
    """Rules by the name they have in the records."""
    policy = Rebalancing(instantiate(config.placement), predictor, **config.policy)
    number = {int(t): o for o, t in enumerate(cutoffs)}
    name, first, every = planner_name(), config.replay.first, config.replay.every

    def by(expected_OLE: np.ndarray) -> Decide:
        return lambda t, current: policy.plan(expected_OLE[number[t]], current, topology, known.before(t))

    return {
        CONTIGUOUS: lambda t, current: current,
        f"{name}/once": lambda t, current: (
            policy.plan(tokens[:t].mean(0), current, topology, known.before(t)) if t == first else current
        ),
        **{f"{name}/{forecast}": by(expected_OLE) for forecast, expected_OLE in expected.items()},
        # only layers move whose expected saving exceeds the move's cost by a margin
        f"{name}/{method_name()}{IF_IT_PAYS}": lambda t, current: (
            policy.propose(tokens[:t], current, topology, price, every, known.before(t)).placement
        ),
    }


def write_next(
    config: DictConfig,
    trace: LoadTrace,
    predictor: Predictor,
    start: Placement,
    topology: Topology,
    known: Known,
    folder: Path,
) -> None:
    """The plan for the steps after the trace, in the format that `export` names."""
    expected_LE = predictor.forecast(trace.tokens, config.replay.every).mean(0)
    given: dict[str, Any] = {"current": start, "routing": known.before(len(trace.step))}
    plan = instantiate(config.placement)(expected_LE, topology, slots_per_device=start.slots_per_device, **given)
    # no format has a word for an empty slot
    if (plan.slots >= 0).all():
        name, write = file_format(config.export)
        write(folder / name, plan)


def planner_name() -> str:
    """The planner's file name in conf/placement."""
    return str(HydraConfig.get().runtime.choices["placement"])


def verdict(records: Sequence[Record]) -> str:
    """Will re-balancing pay? Of one cell's records, in words, by the rule that moves only what is expected to pay."""
    told = {(row.metric, row.method): row.value for row in records if row.state == row.layer == "all"}
    cost = {method: value for (metric, method), value in told.items() if metric == "modelled_over_contiguous"}
    width = max(map(len, cost))
    lines = [f"{'rule':{width}}  modelled step, moves paid  busiest device / mean  bytes moved a step"]
    for method, value in cost.items():
        load, moved = told["device_max_over_mean", method], told["moved_bytes_per_step", method]
        lines.append(f"{method:{width}}  {value:25.3f}  {load:21.3f}  {moved:18,.0f}")
    (rule,) = (method for method in cost if method.endswith(IF_IT_PAYS))
    saving, known = 1 - cost[rule], 1 - cost[oracle_of(cost)]
    says = f"would pay: {rule} saves {saving:.1%} of what a step waits for experts"
    if abs(saving) < NO_DIFFERENCE:
        says = f"would make no difference: a step under {rule} waits for experts as long, to {NO_DIFFERENCE:.0%}"
    elif saving < 0:
        says = f"would not pay: {rule} costs {-saving:.1%} more than staying contiguous"
    return "\n".join([*lines, f"re-balancing {says} (knowing the loads to come, the same planner: {known:.1%})"])


def assumptions(config: DictConfig) -> str:
    """What the modelled seconds rest on, in a line."""
    topology, price = config.topology, config.price
    pairs = "as many as recorded" if price.tokens_per_step is None else f"{price.tokens_per_step:,.0f}"
    return (
        f"modelled: {topology.nodes} x {topology.devices_per_node} devices, {pairs} (token, expert) pairs a step and "
        f"layer at {price.seconds_per_token:.2g} s each, {price.bytes_per_expert:,} bytes an expert, a decision every "
        f"{config.replay.every} steps (topology=, price.*, replay.every); what a plan sends more or less does not count"
    )


@hydra.main(config_path="../conf", config_name="place_experts", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_run(config)
        # before anything is measured
        file_format(config.export)
        labels = [config.setting, f"seed{config.seed}", planner_name(), method_name(), str(config.replay.every)]
        folder = run_cell(config, labels, measure)
        print(assumptions(config))
        print(verdict(read_records(folder / "records.csv")))


if __name__ == "__main__":
    main()
