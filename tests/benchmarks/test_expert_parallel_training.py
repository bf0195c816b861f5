"""`python -m benchmarks.train trainer=expert_parallel`: what it is made of, and two ranks that a launcher started."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from benchmarks.cell import compose
from benchmarks.cluster.ground import Loopback
from benchmarks.cluster.ranks import run_ranks
from benchmarks.record import read_records
from benchmarks.train import build_data, build_module, bytes_needed
from models.callbacks.balance import balance
from models.callbacks.rebalancer import Rebalancer
from models.dispatch import PerNodeDispatcher
from models.expert_parallel import ExpertParallelStrategy
from models.language_model import LanguageModel
from placement.joint import joint
from placement.lpt import lpt
from placement.topology import Placement
from traces.store import read_loads, read_routings

STEPS = 6


@pytest.mark.parametrize("trainer", [f"expert_parallel{kind}" for kind in ("", "_gpu", "_sharded", "_rebalanced")])
def test_ranks_are_those_of_the_topology(trainer: str) -> None:
    chosen = "topology@trainer.strategy.topology=two_nodes_4"
    given = instantiate(compose("train", [f"trainer={trainer}", chosen]).trainer, _convert_="all")
    assert (given["num_nodes"], given["devices"]) == (2, 4)
    assert isinstance(given["strategy"], ExpertParallelStrategy)
    assert given["strategy"].topology.num_devices == 8


def test_parts_of_the_strategy_change_by_name() -> None:
    changes = ["dispatcher@trainer.strategy.dispatcher=per_node", "placement@trainer.strategy.placement=lpt"]
    config = compose("train", ["trainer=expert_parallel", "scale=smoke", *changes])
    strategy = instantiate(config.trainer, _convert_="all")["strategy"]
    assert strategy.dispatcher.func is PerNodeDispatcher
    assert strategy.placement.func is lpt
    planned = strategy.placement(np.ones((2, 8)), strategy.topology, slots_per_device=4)
    assert isinstance(planned, Placement)
    assert planned.num_devices == 2
    assert config.trainer.max_steps == 240


def test_parts_of_the_rebalancer_change_by_name() -> None:
    policy = "trainer.callbacks.rebalancer.policy"
    changes = [
        f"placement@{policy}.planner=joint",
        f"predictor@{policy}.predictor=hedge",
    ]
    config = compose("train", ["trainer=expert_parallel_rebalanced", *changes])
    rebalancer = instantiate(config.trainer, _convert_="all")["callbacks"]["rebalancer"]
    assert isinstance(rebalancer, Rebalancer)
    assert rebalancer.policy.planner.func is joint
    assert type(rebalancer.policy.predictor).__name__ == "Hedge"


def test_memory_counts_a_devices_own_experts(tmp_path: Path) -> None:
    config = compose("train", ["setting=micro8", f"outputs={tmp_path}", "data.domains=[facts]"])
    with torch.device("meta"):
        decoder = build_module(config, build_data(config)).build()
    whole = sum(parameter.numel() for parameter in decoder.parameters())
    experts = sum(parameter.numel() for name, parameter in decoder.named_parameters() if ".experts." in name)
    assert bytes_needed(decoder, 1) == 16 * whole
    assert bytes_needed(decoder, 4) == 16 * (whole - experts * 3 // 4)
    # eight experts on three devices: one of them holds two, the busiest three
    assert bytes_needed(decoder, 3) == 16 * (whole - experts * 5 // 8)
    assert bytes_needed(decoder, 4, spare_slots=2) == 16 * (whole - experts // 2)
    assert bytes_needed(decoder, 4, shares_dense=True) == 16 * (experts // 4 - (experts - whole) // 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    """The cell of two ranks, and a module of the same configuration."""
    folder = tmp_path_factory.mktemp("parallel")
    arguments = [
        "setting=micro8",
        "scale=smoke",
        "trainer=expert_parallel_rebalanced",
        "trainer.callbacks.rebalancer.every=2",
        "trainer.callbacks.rebalancer.policy.margin=0",
        "logger=csv",
        f"outputs={folder}",
        f"trainer.max_steps={STEPS}",
        "+trainer.enable_progress_bar=false",
        "data.domains=[dictionary,facts]",
        "data.val_sequences_per_domain=4",
        "recording.checkpoint_every=4",
        "recording.routing_every=2",
        "recording.probe_every=3",
        "recording.probe_sequences=2",
        "recording.noise_batches=2",
        "recording.balance_every=2",
    ]
    command = [sys.executable, "-m", "benchmarks.train", *arguments]
    run_ranks(command, Loopback(2, 1), folder / "log", timeout=600.0)
    (cell,) = folder.glob("smoke/train/*")
    config = compose("train", arguments)
    return cell, build_module(config, build_data(config))


class TestTwoRanks:
    def test_the_first_rank_wrote_a_whole_cell(self, trained) -> None:
        cell, _ = trained
        assert (cell / "cell.json").exists()
        rows = {record.metric for record in read_records(cell / "records.csv")}
        assert rows == {"held_out/all", "held_out/dictionary", "held_out/facts", "epochs", "tokens_per_step"}
        logs = [(cell.parents[2] / "log" / f"rank-{rank}.txt").read_text() for rank in range(2)]
        assert ["measured: " in log for log in logs] == [True, False]

    def test_all_ranks_tokens_are_recorded(self, trained) -> None:
        loads, routing = read_loads(trained[0] / "trace"), read_routings(trained[0] / "trace")
        assert loads.step.tolist() == list(range(STEPS))
        assert (loads.tokens.sum(-1) == 8 * 32 * 2).all()
        np.testing.assert_array_equal(routing.source_device, np.repeat([0, 1], 4 * 32))
        np.testing.assert_array_equal(routing.loads(), loads.tokens[::2])
        assert read_loads(trained[0] / "probe").step.tolist() == [0, 3]

    def test_balance_and_volume_are_of_all_ranks(self, trained) -> None:
        with (trained[0] / "metrics" / "metrics.csv").open() as file:
            logged = {int(row["step"]): row for row in csv.DictReader(file) if row["volume/rows/local/layer_0"]}
        assert sorted(logged) == [1, 3, 5]
        loads = read_loads(trained[0] / "trace").tokens
        for step, row in logged.items():
            expected = balance(torch.from_numpy(loads[step]))["max_over_mean"]
            assert [float(row[f"balance/max_over_mean/layer_{layer}"]) for layer in range(2)] == pytest.approx(
                expected.tolist()
            )
            for layer in range(2):
                rows = [float(row[f"volume/rows/{link}/layer_{layer}"]) for link in ("local", "inter_node")]
                # a token goes to one device or to both
                assert 8 * 32 <= sum(rows) <= 8 * 32 * 2
                assert float(row[f"volume/bytes/inter_node/layer_{layer}"]) == rows[1] * 16 * 4

    def test_decisions_to_move_experts_are_logged(self, trained) -> None:
        with (trained[0] / "metrics" / "metrics.csv").open() as file:
            logged = {int(row["step"]): row for row in csv.DictReader(file) if row["rebalance/planning_seconds"]}
        assert sorted(logged) == [1, 3, 5]
        for row in logged.values():
            pays = float(row["rebalance/expected_saving"]) > 0
            assert (float(row["rebalance/moved_bytes"]) > 0) == (float(row["rebalance/migration_seconds"]) > 0) == pays

    def test_the_checkpoint_is_a_plain_models(self, trained) -> None:
        cell, module = trained
        state = torch.load(cell / "checkpoints" / f"step={STEPS}.ckpt", weights_only=True)
        module.configure_model()
        assert module.load_state_dict(state["state_dict"]).missing_keys == []
