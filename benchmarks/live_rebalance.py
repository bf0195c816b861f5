"""Do experts that move while training save time? Whole steps under several rules, moves paid, on a ground.

python -m benchmarks.live_rebalance trace.setting=nano16_unbalanced trace.seed=0 ground=emulated_200mbit_small

Every rule has a model of its own; all train on the same batches, a block of steps at a time, each round in a new order.
Before a block its rule forecasts, plans and moves experts, weights and optimiser states, and that is timed with it.
Devices read different domains of text. Ranks must not outnumber cores, or the scheduler would be timed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.cell import Measurement, compose, is_first_process, run_cell, user_errors
from benchmarks.cluster.ground import Ground
from benchmarks.exchange_job import Variant
from benchmarks.forecaster import method_name
from benchmarks.live_job import PARENT, PILOT, REBALANCE, STAY, Live, Lived, read_lived, write_live
from benchmarks.measured_arms import run_job
from benchmarks.place_experts import planner_name
from benchmarks.record import Record, read_records
from benchmarks.replay import CONTIGUOUS, ORACLE
from benchmarks.rows import Rows
from benchmarks.step_job import StepJob, write_job
from benchmarks.step_time import add_parts, interval, refuse_crowded, step_seconds
from benchmarks.trained import run_folder, with_trained
from models.rebalancing import Rebalancing
from placement.contiguous import contiguous
from placement.topology import Topology
from traces.load import LoadTrace
from traces.store import read_loads, read_routings

COLOCATED = "colocated"


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Train under all rules on the ground; record seconds of a step, its parts, moves, and how much saving is kept."""
    if config.live.timeout_minutes <= 0:
        raise ValueError(f"live.timeout_minutes must be above 0, got {config.live.timeout_minutes}")
    topology: Topology = instantiate(config.topology)
    ground: Ground = instantiate(config.ground)(topology.nodes, topology.devices_per_node)
    refuse_crowded(ground)
    trace, told = read_loads(run_folder(config) / "trace"), folder / "live"
    live = make_live(config, trace)
    job = make_job(config, topology, live, trace)
    with ground:
        write_job(told, job)
        write_live(told, live)
        run_job("live_rank", told, ground, 60.0 * config.live.timeout_minutes)
    rows = Rows(config, ground=ground.name)
    # another launcher's other ranks: the first one alone was told what all measured
    if is_first_process():
        add_lived(rows, read_lived(told, live), config.live.start, config.live.steps, config.seed)
        rows.add("load_average", os.getloadavg()[0], state=config.live.start)
    return Measurement(rows.records, data_fingerprint=trace.source.data_fingerprint)


def make_live(config: DictConfig, trace: LoadTrace) -> Live:
    """The rules by the names that they have in the records.

    Raises:
        ValueError: as Live, or a predictor that must be trained first or leaves experts out.
    """
    predictor, first = instantiate(config.predictor), trace.tokens[: config.live.history]
    if hasattr(predictor, "fit"):
        raise ValueError(f"{type(predictor).__name__} is trained on another run: take one that forecasts as it is")
    if not np.isfinite(predictor.forecast(first, 1)).all():
        raise ValueError(f"predictor {method_name()} does not forecast every expert: take another one")
    planner, against = planner_name(), config.live.against
    kinds = {
        CONTIGUOUS: STAY,
        COLOCATED: STAY,
        f"{against}/last_value": "last_value",
        f"{against}/{method_name()}": "forecast",
        f"{against}/{ORACLE}": "oracle",
        f"{planner}/{method_name()}": "forecast",
        f"{planner}/{method_name()}/if_it_pays": "if_it_pays",
        f"{planner}/{ORACLE}": "oracle",
    }
    configs = {against: compose(config.entry, [f"placement={against}"]).placement, planner: config.placement}
    plain = {name: OmegaConf.to_container(one, resolve=True) for name, one in configs.items()}
    planners = {name: plain[name.split("/")[0]] for name, kind in kinds.items() if kind != STAY}
    told = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("predictor", "policy")}
    told["policy"]["horizon"] = config.policy.horizon or max(config.live.blocks * config.live.steps, 1)  # type: ignore[index,call-overload]
    past = trace.tokens[-config.live.history :] if config.live.start == PARENT else trace.tokens[:0]
    return Live(kinds, planners, **told, start=config.live.start, history=config.live.history, past=past)  # type: ignore[arg-type]


def make_job(config: DictConfig, topology: Topology, live: Live, trace: LoadTrace) -> StepJob:
    """A model of its own for each rule, and the pilot's; ValueError as the planner, the policy and StepJob."""
    run, routing = run_folder(config), read_routings(run_folder(config) / "trace")
    slots, load_LE = -(-trace.num_experts // topology.num_devices), routing.loads().sum(0)
    start = contiguous(load_LE, topology, slots_per_device=slots)
    # what a planner or the policy refuses is told here, in one line, not by the ranks
    for planner in live.planners.values():
        policy = Rebalancing(instantiate(planner), instantiate(live.predictor), **live.policy)
        policy.plan(load_LE / load_LE.sum(-1, keepdims=True), start, topology, routing.sets())
    colocated = instantiate(compose(config.entry, [f"placement={COLOCATED}"]).placement)
    where = dict.fromkeys((*live.rules, PILOT), start)
    where[COLOCATED] = colocated(load_LE, topology, slots_per_device=slots, routing=routing.sets())
    # files are named by number: rules have slashes in their names
    keys = {name: str(number) for number, name in enumerate(where)}
    return StepJob(
        topology,
        {keys[name]: str(run.resolve()) for name in where},
        {keys[name]: placement for name, placement in where.items()},
        {name: Variant(name, keys[name], config.live.dispatcher) for name in live.rules},
        config.live.blocks,
        config.live.steps,
        config.seed,
        str(Path(config.outputs).resolve()),
    )


def add_lived(rows: Rows, lived: Mapping[str, Lived], state: str, steps: int, seed: int) -> None:
    """Seconds of a step under each rule: medians over blocks of its steps, plus its moves' mean over all steps.

    Args:
        state: what models started from.
        steps: of a block, from one decision to the next.
        seed: of the bootstrap over blocks.
    """
    base_B = step_seconds(lived[CONTIGUOUS].seconds[..., :-1])
    fixed = float(np.median(base_B))
    for name, one in lived.items():
        columns: dict[str, Any] = {"method": name, "state": state, "horizon": steps, "count": len(base_B)}
        whole_B, moving = step_seconds(one.seconds[..., :-1]), float(one.seconds[0, :, -1].mean())
        ratio, ends = float(np.median(whole_B / base_B)), interval(whole_B / base_B, seed)
        rows.add("step_seconds", float(np.median(whole_B)) + moving, **columns)
        for ending, value in {"": ratio, "/low": ends[0], "/high": ends[1]}.items():
            rows.add(f"step_over_baseline{ending}", value + moving / fixed, **columns)
        rows.add("step_over_baseline/moves_not_paid", ratio, **columns)
        add_parts(rows, one.seconds[..., :-1], **columns)
        rows.add(f"step_seconds/{REBALANCE}", moving, **columns)
        rows.add("moved_bytes_per_step", float(one.moved_bytes.mean()) / steps, **columns)
        rows.add("device_max_over_mean", float(one.max_over_mean.mean()), **columns)
        rows.add("rows_sent_per_step", float(one.rows_sent.mean()), **columns)
        rows.add("busiest_rows_per_step", float(one.busiest_rows.mean()), **columns)
        rows.add("loss_difference", float(np.abs(one.loss - lived[CONTIGUOUS].loss).max()), **columns)
        if moving:
            saved = (1 - ratio) * fixed
            rows.add("break_even_steps", moving * steps / saved if saved > 0 else np.inf, **columns)


def summary(records: Sequence[Record]) -> str:
    """A rule a line: its step, moves paid, over contiguous experts', with the interval over blocks, and why."""
    told = {(row.metric, row.method): row.value for row in records}
    methods = [row.method for row in records if row.metric == "step_over_baseline"]
    width = max(map(len, methods))
    lines = [f"{'rule':{width}}  step over contiguous, moves paid  busiest device / mean  rows sent a step"]
    for method in methods:
        ratio, low, high = (told[f"step_over_baseline{end}", method] for end in ("", "/low", "/high"))
        load, rows = told["device_max_over_mean", method], told["rows_sent_per_step", method]
        lines.append(f"{method:{width}}  {f'{ratio:.3f} [{low:.3f}, {high:.3f}]':>32}  {load:21.3f}  {rows:16,.0f}")
    return "\n".join(lines)


@hydra.main(config_path="../conf", config_name="live_rebalance", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_trained(config)
        ground = HydraConfig.get().runtime.choices["ground"]
        labels = [config.setting, f"seed{config.seed}", config.live.start, planner_name(), method_name(), str(ground)]
        folder = run_cell(config, labels, measure)
        if is_first_process():
            print(summary(read_records(folder / "records.csv")))


if __name__ == "__main__":
    main()
