"""A run replayed with experts that move: scores by hand, and the entry point on recorded, foreign and drawn loads."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.cell import compose
from benchmarks.place_experts import Known, check, expected_loads, scaled, verdict
from benchmarks.record import Record, read_records
from benchmarks.replay import add_walks, walk
from benchmarks.rows import Rows
from placement.cost import CostModel
from placement.payoff import Price
from placement.topology import Placement, Topology
from predictors.windows import LastValue
from traces.load import TraceSource
from traces.routing import RoutingTrace

Run = Callable[..., CompletedProcess[str]]
TOPOLOGY = Topology(1, 2, 1.0, 1.0, 0.0, 0.0)
APART, TOGETHER = Placement(np.array([[[0, 2], [1, 3]]])), Placement(np.array([[[0, 1], [2, 3]]]))
PRICE = Price(0.5, 10, CostModel(0.0, 0.0, 1.0))
# experts 0 and 1 are busy for four steps, then 0 and 2
TOKENS = np.array([[[6.0, 6.0, 2.0, 2.0]]] * 4 + [[[6.0, 2.0, 6.0, 2.0]]] * 4)


def to_apart(step: int, current: Placement) -> Placement:
    return APART


def test_a_walk_scores_each_plan_on_the_steps_after_it() -> None:
    found = walk(to_apart, TOKENS, np.array([2, 4, 6]), 2, TOGETHER, TOPOLOGY, PRICE)
    np.testing.assert_allclose(found.busiest[:, 0], [8.0, 12.0, 12.0])
    np.testing.assert_allclose(found.balance["max_over_mean"][:, 0], [1.0, 1.5, 1.5])
    # experts 1 and 2 change places once, each over its own link
    np.testing.assert_allclose(found.moved_bytes[:, 0], [20.0, 0.0, 0.0])
    np.testing.assert_allclose(found.move_seconds[:, 0], [10.0, 0.0, 0.0])
    np.testing.assert_allclose(found.seconds(0.5, every=2)[:, 0], [4.0 + 5.0, 6.0, 6.0])
    np.testing.assert_allclose(found.seconds(0.5, every=2, paid=False)[:, 0], [4.0, 6.0, 6.0])


def test_what_is_kept_of_the_oracles_saving_with_the_move_paid_and_unpaid() -> None:
    cutoffs = np.array([0, 2])
    rules = {"contiguous": lambda t, now: now, "lpt/oracle": to_apart, "lpt/late": lambda t, now: APART if t else now}
    walks = {name: walk(rule, TOKENS, cutoffs, 2, TOGETHER, TOPOLOGY, PRICE) for name, rule in rules.items()}
    rows = Rows(OmegaConf.create({"experiment": "e", "scale": "s", "setting": "toy", "seed": 0}), ground="modelled")
    add_walks(rows, walks, PRICE, 2, "stable", np.ones((2, 1), bool))
    found = {(row.method, row.metric): row.value for row in rows.records if row.layer == "all"}
    # 12 pairs wait on the busiest device, 8 after the move: 6 or 4 seconds an interval's step, and 5 for the move
    assert found["lpt/late", "saving_kept"] == pytest.approx(0.5)
    assert found["lpt/late", "saving_kept_net"] == pytest.approx((12 - 15) / 4)
    assert found["lpt/oracle", "modelled_over_contiguous"] == pytest.approx(13 / 12)
    assert found["lpt/late", "moved_bytes_per_step"] == pytest.approx(20 / 4)
    assert found["contiguous", "saving_kept"] == 0
    # over the oracle's steps, its move not counted: 4 seconds in both intervals
    assert found["contiguous", "regret"] == pytest.approx(12 / 8 - 1)
    assert found["lpt/late", "regret"] == pytest.approx(15 / 8 - 1)


def test_shares_are_kept_when_tokens_are_scaled() -> None:
    counts = np.array([[[1, 3], [0, 0]]])
    np.testing.assert_allclose(scaled(counts, 100.0), [[[25.0, 75.0], [0.0, 0.0]]])
    np.testing.assert_allclose(scaled(counts, None), counts)


def test_each_forecast_says_what_it_knows() -> None:
    counts = np.array([[[1, 3]], [[3, 1]], [[2, 2]], [[4, 0]]])
    found = expected_loads(counts, np.array([2]), 2, {"last_value": LastValue()})
    np.testing.assert_allclose(found["last_value"], [[[0.75, 0.25]]])
    np.testing.assert_allclose(found["oracle"], [[[0.75, 0.25]]])


def record(metric: str, method: str, value: float) -> Record:
    return Record("e", "s", "modelled", "toy", 0, method, metric, value, "c")


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (0.9, "would pay: lpt/hedge/if_it_pays saves 10.0% of"),
        (0.995, "would make no difference: a step under lpt/hedge/if_it_pays waits for experts as long, to 1%"),
        (1.004, "would make no difference"),
        (1.1, "would not pay: lpt/hedge/if_it_pays costs 10.0% more than"),
    ],
)
def test_the_verdict_is_of_the_rule_that_decides_not_of_the_best_in_hindsight(planned: float, said: str) -> None:
    cost = {"contiguous": 1.0, "lpt/hedge/if_it_pays": planned, "lpt/last_value": 0.7, "lpt/oracle": 0.8}
    records = [record("modelled_over_contiguous", method, value) for method, value in cost.items()]
    for metric in ("device_max_over_mean", "moved_bytes_per_step"):
        records += [record(metric, method, 1.0) for method in cost]
    assert f"re-balancing {said}" in verdict(records)


def test_only_routings_of_steps_done_are_known() -> None:
    chosen = np.arange(4).reshape(4, 1, 1, 1)
    source = TraceSource("toy", "TopK", 0, 1, 1, "none", "0")
    routing = RoutingTrace(np.array([0, 20, 40, 60]), chosen, np.zeros(1, int), 4, source)
    known = Known(np.arange(10, 80), routing)
    told = {done: sets[0].experts.item() for done in (1, 10, 11, 31, 70) if (sets := known.before(done))}
    # after 10 steps, number 19 is done; after 11, number 20
    assert told == {1: 0, 10: 0, 11: 1, 31: 2, 70: 3}
    assert Known(np.arange(9), None).before(3) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("replay.every=0", r"replay\.every must be at least 1, got 0"),
        ("replay.spare_slots=-1", r"replay\.spare_slots must be at least 0, got -1"),
        ("price.tokens_per_step=-1", r"price\.tokens_per_step must be above 0 .*, got -1"),
    ],
)
def test_numbers_that_cannot_be_are_named_by_their_keys(change: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(compose("place_experts", [change]))


def test_replay_of_a_foreign_trace(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    small = ("detector.window=20", "replay.first=60", "replay.every=20", "policy.window=20", "topology=one_node_4")
    common = (f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", *small)
    done = run_module("place_experts", "predictor=sw_avg_50", "placement=lpt", *common)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("records.csv")
    rows = [row for row in read_records(path) if row.layer == "all" and row.state == "stable"]
    load = {row.method: row.value for row in rows if row.metric == "device_max_over_mean"}
    assert set(load) == {"contiguous", "lower_bound"} | {
        f"lpt/{name}" for name in ("once", "last_value", "sw_avg_50", "sw_avg_50/if_it_pays", "oracle")
    }
    assert load["lower_bound"] <= load["lpt/oracle"] <= load["contiguous"]
    assert load["lpt/sw_avg_50"] < load["lpt/last_value"]
    error = {row.method: row.value for row in rows if row.metric == "total_variation_of_mean"}
    assert error["oracle"] == 0 < error["sw_avg_50"] < error["last_value"]
    assert "re-balancing would " in done.stdout
    assert "modelled: 1 x 4 devices, 1,048,576 (token, expert) pairs" in done.stdout
    (plan,) = tmp_path.rglob("expert_location.json")
    physical = np.array(json.loads(plan.read_text())["physical_to_logical_map"])
    assert (np.sort(physical, axis=1) == np.arange(physical.shape[1])).all()
    kept = {row.method: row.value for row in rows if row.metric == "saving_kept"}
    assert kept["lpt/oracle"] == 1
    assert {row.topology for row in rows} == {"1x4"}
    assert {row.ground for row in rows} == {"modelled"}


def test_drawn_loads_can_be_replaced_by_another_shape(run_module: Run, tmp_path: Path) -> None:
    size = ("drawn.num_steps=200", "drawn.num_experts=16", "drawn.tokens_per_step=20000", "replay.every=50")
    common = (f"outputs={tmp_path}", "logger=csv", "placement=replicate_swaps", "replay.spare_slots=1")
    done = run_module("place_experts", "workload=hot_experts", "topology=one_node_8", *size, *common)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("records.csv")
    rows = [row for row in read_records(path) if (row.layer, row.state) == ("all", "all")]
    assert {row.setting for row in rows} == {"hot_experts"}
    load = {row.method: row.value for row in rows if row.metric == "device_max_over_mean"}
    # two experts have a quarter of all tokens each: without replicas their devices take twice the mean or more
    assert load["lower_bound"] == 1.0 <= load["replicate_swaps/hedge"] < 1.5 < 2 <= load["contiguous"]
    both = run_module("place_experts", "workload=hot_experts", "trace.path=x", *common)
    assert both.returncode != 0
    assert "take workload= or trace.path=x, not both" in both.stderr


def test_a_trace_without_an_interval_is_refused(run_module: Run, trace_folder: Path, tmp_path: Path) -> None:
    done = run_module(
        "place_experts", f"trace.path={trace_folder}", f"outputs={tmp_path}", "logger=csv", "replay.first=399"
    )
    assert done.returncode != 0
    assert "400 steps has no interval of 100 after step 399" in done.stderr
