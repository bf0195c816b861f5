"""Experts that move between blocks of whole steps on two ranks, and what is made of the seconds."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.cell import compose
from benchmarks.cluster.ground import Loopback
from benchmarks.cluster.ranks import run_ranks
from benchmarks.exchange_job import Variant
from benchmarks.live_job import LIVE_PARTS, Live, Lived, read_live, read_lived, write_live
from benchmarks.live_rank import Seen, build_rules
from benchmarks.live_rebalance import add_lived, make_live
from benchmarks.record import read_records
from benchmarks.rows import Rows
from benchmarks.step_job import StepJob, write_job
from placement.cost import CostModel
from placement.payoff import Price
from placement.topology import Placement, Topology
from traces.load import LoadTrace, TraceSource
from traces.routing import ExpertSets

ROOT = Path(__file__).resolve().parents[2]
CONFIG = OmegaConf.create({"experiment": "toy", "scale": "smoke", "setting": "micro8", "seed": 0})
TOPOLOGY = Topology(2, 1, 1e9, 1e9, 0.0, 0.0)
RULES = {
    "contiguous": "stay",
    "lpt/last_value": "last_value",
    "lpt/window": "forecast",
    "lpt/window/if_it_pays": "if_it_pays",
    "lpt/oracle": "oracle",
    "joint/window": "forecast",
}
EVEN = Placement(np.tile(np.arange(8).reshape(2, 4), (2, 1, 1)))
# the first four experts, all on the first device, are busy; then, once, the last four
SKEWED = np.tile([400, 300, 200, 100, 4, 3, 2, 1], (20, 2, 1))
PAST = np.concatenate([SKEWED, SKEWED[-1:, :, ::-1]])


def live(start: str = "parent") -> Live:
    lpt = {"_target_": "placement.lpt.lpt", "_partial_": True}
    joint = {"_target_": "placement.joint.joint", "_partial_": True, "load_weight": 0.0}
    planners = {name: joint if name.startswith("joint") else lpt for name, kind in RULES.items() if kind != "stay"}
    predictor = {"_target_": "predictors.windows.SlidingWindow", "window": 20}
    policy = {"horizon": 4, "margin": 0.0, "window": 5, "enter": 0.02}
    return Live(RULES, planners, predictor, policy, start, 1000, PAST if start == "parent" else PAST[:0])


def test_what_ranks_are_told_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_live(tmp_path, live())
    found = read_live(tmp_path)
    for name in ("rules", "planners", "predictor", "policy", "start", "history"):
        assert getattr(found, name) == getattr(live(), name)
    np.testing.assert_array_equal(found.past, PAST)


class TestRules:
    PRICE = Price(1.0, 1, CostModel(0.0, 0.0, 1.0))

    # tokens of the first device want odd experts
    ROUTING = [ExpertSets(np.array([[1, 3, 5, 7], [0, 2, 4, 6]]), np.array([9, 9]), np.array([0, 1]))] * 2

    def decide(self, name: str, coming: np.ndarray) -> list[list[int]]:
        """Experts of the first layer's devices."""
        past, ahead = Seen(PAST, self.ROUTING), Seen(coming, self.ROUTING)
        plan = build_rules(live(), TOPOLOGY, steps=4)[name](past, ahead, EVEN, self.PRICE)
        return [sorted(experts) for experts in plan.slots[0].tolist()]

    def test_only_the_oracle_looks_ahead(self) -> None:
        ahead, other = SKEWED[:4], SKEWED[:4, :, ::-1]
        for name in live().planners.keys() - {"lpt/oracle"}:
            assert self.decide(name, ahead) == self.decide(name, other)
        uneven = np.tile([1000, 0, 0, 0, 0, 0, 0, 999], (4, 2, 1))
        assert self.decide("lpt/oracle", uneven) != self.decide("lpt/oracle", ahead)

    def test_the_last_load_and_the_forecast_see_other_experts_busy(self) -> None:
        # busy ones are parted, two and two
        of_last = self.decide("lpt/last_value", SKEWED[:4])
        assert all(len({4, 5, 6, 7} & set(experts)) == 2 for experts in of_last)
        of_window = self.decide("lpt/window", SKEWED[:4])
        assert all(len({0, 1, 2, 3} & set(experts)) == 2 for experts in of_window)

    def test_a_planner_that_takes_routings_is_told_where_tokens_start(self) -> None:
        assert self.decide("joint/window", SKEWED[:4]) == [[1, 3, 5, 7], [0, 2, 4, 6]]

    def test_what_stays_has_no_rule(self) -> None:
        assert list(build_rules(live(), TOPOLOGY, steps=4)) == list(RULES)[1:]


@pytest.fixture(scope="module", params=["parent", "scratch"])
def lived(
    request: pytest.FixtureRequest, keep_run: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Lived]:
    """Two ranks on loopback: two blocks of two steps under every rule."""
    folder = tmp_path_factory.mktemp("live")
    changes = ["setting=micro8", "scale=smoke", "data.domains=[dictionary,facts]", "recording.probe_sequences=2"]
    keep_run(compose("train", [*changes, f"outputs={folder}"]), folder / "run")
    keys = [str(number) for number in range(len(RULES) + 1)]
    variants = {name: Variant(name, key, "per_device") for name, key in zip(RULES, keys, strict=False)}
    runs, placements = dict.fromkeys(keys, str(folder / "run")), dict.fromkeys(keys, EVEN)
    job = StepJob(TOPOLOGY, runs, placements, variants, blocks=2, steps=2, seed=0, outputs=str(folder))
    write_job(folder / "live", job)
    write_live(folder / "live", live(request.param))
    command = [sys.executable, "-m", "benchmarks.live_rank", str(folder / "live"), "gloo"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        run_ranks(command, Loopback(2, 1), folder / "log", timeout=600.0)
    return read_lived(folder / "live", live(request.param))


class TestTwoRanks:
    def test_moves_change_no_rules_training(self, lived: dict[str, Lived]) -> None:
        for one in lived.values():
            np.testing.assert_allclose(one.loss, lived["contiguous"].loss, rtol=1e-5)

    def test_rules_move_experts_and_are_timed(self, lived: dict[str, Lived]) -> None:
        for name, one in lived.items():
            assert one.seconds.shape == (2, 2, len(LIVE_PARTS))
            assert (one.seconds[..., :-1] > 0).all()
            # deciding takes time even where nothing moves
            assert ((one.seconds[..., -1] > 0) == (name != "contiguous")).all()
        assert lived["contiguous"].moved_bytes.tolist() == [0, 0]
        assert lived["lpt/last_value"].moved_bytes[0] > 0
        for one in lived.values():
            # on two devices the busiest link is one of two directions
            assert (one.busiest_rows >= one.rows_sent / 2).all()
            assert (one.busiest_rows < one.rows_sent).all()
        assert lived["lpt/oracle"].max_over_mean.mean() < lived["contiguous"].max_over_mean.mean()


class TestRows:
    def rows(self) -> dict[tuple[str, str], float]:
        """Ten seconds a step contiguous, six and a half where the oracle moves; a move of eight before one block."""

        def one(experts: list[float], moving: list[float]) -> Lived:
            parts = np.array(
                [[1.0, 1.0, seconds, 1.0, 1.0, move] for seconds, move in zip(experts, moving, strict=True)]
            )
            moved = np.array([0.0, 300.0, 0.0])
            return Lived(np.stack([parts, parts]), moved, np.ones(3), np.full(3, 8.0), np.full(3, 5.0), np.zeros(3))

        rows = Rows(CONFIG, ground="toy")
        lived = {
            "contiguous": one([6, 6, 60], [0, 0, 0]),
            "lpt/hedge": one([3.5, 3.5, 35], [0.0, 3.0, 0.0]),
            "lpt/last_value": one([6, 6, 60], [0.0, 3.0, 0.0]),
            "lpt/oracle": one([1, 1, 10], [0.0, 3.0, 0.0]),
        }
        add_lived(rows, lived, "parent", steps=10, seed=0)
        assert {(row.state, row.horizon, row.ground) for row in rows.records} == {("parent", 10, "toy")}
        return {(row.method, row.metric): row.value for row in rows.records}

    def test_a_rare_move_is_paid_in_full(self) -> None:
        found = self.rows()
        # a median over blocks would never see a move before one of three
        assert found["lpt/hedge", "step_seconds/rebalance"] == pytest.approx(1.0)
        assert found["lpt/hedge", "step_seconds"] == pytest.approx(8.5)
        assert found["lpt/hedge", "step_over_baseline/moves_not_paid"] == pytest.approx(0.75)
        assert found["lpt/hedge", "step_over_baseline"] == pytest.approx(0.85)
        assert found["lpt/hedge", "moved_bytes_per_step"] == pytest.approx(10.0)

    def test_an_interval_over_blocks_pays_its_moves_too(self) -> None:
        found = self.rows()
        for name in ("lpt/hedge", "lpt/oracle"):
            low, middle, high = (found[name, f"step_over_baseline{end}"] for end in ("/low", "", "/high"))
            assert low <= middle <= high
        assert found["contiguous", "step_over_baseline/low"] == found["contiguous", "step_over_baseline/high"] == 1.0
        # blocks of .75, .75 and .61 of the baseline, and a move of a tenth of a step
        assert found["lpt/hedge", "step_over_baseline/high"] == pytest.approx(0.85)

    def test_from_which_interval_on_moves_pay(self) -> None:
        found = self.rows()
        # ten seconds a decision, two and a half saved a step
        assert found["lpt/hedge", "break_even_steps"] == pytest.approx(4.0)
        assert ("contiguous", "break_even_steps") not in found
        # steps that are no faster never pay for a move
        assert found["lpt/last_value", "break_even_steps"] == np.inf


class TestBadInput:
    TRACE = LoadTrace(np.arange(21), PAST, TraceSource("toy", "TopK", 0, 510, 2, "none", "0"))

    @pytest.fixture(autouse=True)
    def chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchmarks.live_rebalance.planner_name", lambda: "joint")
        monkeypatch.setattr("benchmarks.live_rebalance.method_name", lambda: "hedge_sampled")

    def test_the_horizon_is_the_measurements(self) -> None:
        changes = ["live.blocks=3", "live.steps=5", "live.history=7"]
        made = make_live(compose("live_rebalance", changes), self.TRACE)
        assert made.policy["horizon"] == 15
        np.testing.assert_array_equal(made.past, PAST[-7:])
        assert made.planners["lpt_swaps/oracle"]["_target_"] == "placement.lpt_swaps.lpt_swaps"
        assert made.planners["joint/hedge_sampled"]["_target_"] == "placement.joint.joint"
        assert make_live(compose("live_rebalance", [*changes, "policy.horizon=9"]), self.TRACE).policy["horizon"] == 9

    def test_an_unknown_start(self) -> None:
        with pytest.raises(ValueError, match=r"live\.start must be one of parent, scratch, got 'middle'"):
            make_live(compose("live_rebalance", ["live.start=middle"]), self.TRACE)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"rules": {"contiguous": "sit"}}, "rules must be among stay, .*, got sit"),
            ({"history": 0}, r"live\.history must be at least 1, got 0"),
        ],
    )
    def test_what_makes_no_sense(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            replace(live(), **options)

    def test_a_predictor_that_leaves_experts_out(self) -> None:
        with pytest.raises(ValueError, match="predictor hedge_sampled does not forecast every expert"):
            make_live(compose("live_rebalance", ["predictor=hedge_sampled"]), self.TRACE)

    def test_a_predictor_that_learns(self) -> None:
        with pytest.raises(ValueError, match="Lstm is trained on another run"):
            make_live(compose("live_rebalance", ["predictor=lstm"]), self.TRACE)


@pytest.mark.slow
def test_as_a_user_runs_it(run_module: Callable, tmp_path: Path) -> None:
    where = [f"outputs={tmp_path}", "logger=csv"]
    trained = run_module("train", "setting=micro8", "scale=smoke", *where)
    assert trained.returncode == 0, trained.stderr
    asked = ["trace.setting=micro8", "trace.scale=smoke", "live.blocks=2", "live.steps=2", "policy.window=20"]
    done = run_module("live_rebalance", *asked, *where)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("smoke/live_rebalance/*/records.csv")
    rows = [row for row in read_records(path) if row.metric == "step_over_baseline"]
    moving = ["lpt_swaps/last_value", "lpt_swaps/hedge", "lpt_swaps/oracle"]
    moving += ["joint/hedge", "joint/hedge/if_it_pays", "joint/oracle"]
    assert [row.method for row in rows] == ["contiguous", "colocated", *moving]
    assert "joint/hedge/if_it_pays" in done.stdout
    mistakes = {
        "placement.starts=0": "starts 1 or more",
        "live.blocks=0": "at least one block",
        "live.timeout_minutes=-1": "timeout_minutes must be above 0",
        "predictor=hedge_sampled": "does not forecast every expert",
    }
    for mistake, told in mistakes.items():
        refused = run_module("live_rebalance", *asked, mistake, *where)
        assert refused.returncode == 1
        assert told in refused.stderr.strip()
        assert len(refused.stderr.strip().splitlines()) == 1
    again = run_module("live_rebalance", *asked, *where)
    assert "already measured" in again.stdout
