"""A rank that dies, hangs or was told something else ends the run: all end by themselves and name it."""

import json

import pytest
from parity import losses
from train_cases import train_alone

from benchmarks.cluster.ground import Loopback
from benchmarks.cluster.ranks import RankFailed, end, free_port, start
from traces.store import read_loads


@pytest.fixture(scope="session")
def run_alone(rank_command):
    """Start ranks that nobody watches, and wait for all but the one that stays; exit codes by rank."""

    def run(folder, num_ranks, *cases, stays=None):
        command = rank_command("fault_cases.py", folder, cases)
        ground, port = Loopback(1, num_ranks), str(free_port())
        ranks = []
        try:
            for rank in range(num_ranks):
                ranks.append(start(command, ground, folder, rank, port))
            return [rank.process.wait(timeout=100) for rank in ranks if rank.rank != stays]
        finally:
            end(ranks)

    return run


def log(folder, rank):
    return (folder / f"rank-{rank}.txt").read_text()


def raised(folder, rank):
    return json.loads((folder / f"raised-{rank}.json").read_text())


class TestKilled:
    """One of four ranks is killed in its sixth step."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory, run_alone):
        folder = tmp_path_factory.mktemp("killed")
        codes = run_alone(folder, 4, {"victim": 2, "fault": "kill", "timeout_seconds": 300.0})
        assert codes == [1, 1, -9, 1]
        return folder

    @pytest.mark.parametrize("rank", [0, 1, 3])
    def test_the_others_name_it(self, folder, rank):
        (told,) = raised(folder, rank)
        assert "rank 2 gave no sign of life" in told
        assert "killed or hung" in log(folder, rank)

    def test_the_last_checkpoint_trains_on_in_one_process(self, folder, tmp_path):
        (checkpoint,) = (folder / "checkpoints").iterdir()
        assert checkpoint.name == "step=4.ckpt"
        whole = {"name": "whole", "length": 12}
        train_alone(tmp_path, whole, whole | {"name": "rest", "resume": str(checkpoint)})
        assert losses(tmp_path, "rest") == pytest.approx(losses(tmp_path, "whole")[4:], rel=2e-5)

    def test_the_trace_is_readable_up_to_the_last_chunk(self, folder):
        trace = read_loads(folder / "trace")
        assert trace.step.tolist() == [0, 1, 2, 3]
        # 64 tokens with two experts each, in both layers
        assert (trace.tokens.sum(-1) == 128).all()


TOLD = {
    "placement": {"placement": "scattered"},
    "parameters": {"dim": 24},
    "precision": {"precision": "bf16-mixed"},
    "number of ranks": {"ranks": 4},
}


@pytest.mark.slow
class TestDisagreement:
    """Rank 1 of two is told something else each time, and at last it fails of its own."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory, run_alone):
        folder = tmp_path_factory.mktemp("disagreement")
        cases = [{"victim": 1, "told": told} for told in TOLD.values()]
        codes = run_alone(folder, 2, *cases, {"victim": 1, "fault": "fail"})
        assert codes == [1, 1]
        return folder

    @pytest.mark.parametrize("name", list(TOLD))
    @pytest.mark.parametrize("rank", [0, 1])
    def test_both_ranks_name_rank_and_fact(self, folder, name, rank):
        told = raised(folder, rank)[list(TOLD).index(name)]
        assert told.startswith(f"ValueError: rank 1 was told {name} = ")
        assert ", rank 0 " in told

    def test_what_another_rank_raised_is_told(self, folder):
        cause = "ArithmeticError: the loss is not a number"
        assert f"the first to fail was rank 1: {cause}" in log(folder, 0)
        assert raised(folder, 1)[-1] == cause


@pytest.mark.slow
class TestStill:
    """A rank that hangs: stopped as a whole, or its main thread alone."""

    def test_a_stopped_rank_is_named_once_the_time_is_up(self, tmp_path, run_alone):
        assert run_alone(tmp_path, 2, self.case(1, "stop"), stays=1) == [1]
        assert "rank 1 gave no sign of life" in log(tmp_path, 0)

    def test_that_it_is_rank_0_is_seen_without_its_store(self, tmp_path, run_alone):
        assert run_alone(tmp_path, 2, self.case(0, "stop"), stays=0) == [1]
        assert "rank 0" in log(tmp_path, 1).splitlines()[-1]

    def test_a_rank_whose_main_thread_hangs_is_behind_and_ends_itself(self, tmp_path, run_alone):
        assert run_alone(tmp_path, 2, self.case(1, "hang")) == [1, 1]
        for rank in (0, 1):
            assert "rank 1 is behind, at step " in log(tmp_path, rank)
            assert "in hang" in log(tmp_path, rank)

    def case(self, victim, fault):
        return {"victim": victim, "fault": fault, "timeout_seconds": 6.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill", "rank 1 of 2 .* ended with SIGKILL"),
        ("stop", "rank 1 of 2 .* gave no sign of life, says rank 0"),
        ("hang", "rank 1 of 2 .* is behind, says rank [01]"),
    ],
)
def test_the_launcher_tells_what_the_ranks_told(tmp_path, run_ranks, fault, message):
    case = {"victim": 1, "fault": fault, "timeout_seconds": 6.0}
    with pytest.raises(RankFailed, match=f"(?s){message}") as caught:
        run_ranks("fault_cases.py", 2, tmp_path, [case], timeout=100.0)
    assert caught.value.rank == 1
