"""The launcher: a rank that dies, fails or hangs ends the run with its name and cause, and nothing is left running."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cluster import ranks
from benchmarks.cluster.ground import Loopback
from benchmarks.cluster.ranks import RankFailed, run_ranks

Alive = Callable[[Path], list[int]]


def python(folder: Path, cases: str) -> list[str]:
    """A rank that notes its process in `folder/pids`, then runs the lines; `rank` is its number."""
    (folder / "pids").mkdir()
    path = folder / "script.py"
    path.write_text(
        "import json, os, signal, subprocess, sys, time\n"
        f"open(f'{folder}/pids/{{os.getpid()}}', 'w').close()\n"
        f"rank = int(os.environ['RANK'])\n{cases}\n"
    )
    return [sys.executable, str(path)]


def test_all_ranks_find_their_place_and_logs_are_complete(tmp_path: Path, alive: Alive) -> None:
    keys = [
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "OMP_NUM_THREADS",
        "MASTER_ADDR",
        "MASTER_PORT",
    ]
    lines = f"print(json.dumps([os.environ[key] for key in {keys}]), flush=True)\nprint('done', file=sys.stderr)"
    run_ranks(python(tmp_path, lines), Loopback(2, 3), tmp_path / "log", timeout=60.0)
    logs = [(tmp_path / "log" / f"rank-{rank}.txt").read_text().splitlines() for rank in range(6)]
    assert [log[1] for log in logs] == ["done"] * 6
    places = [json.loads(log[0]) for log in logs]
    port = places[0][-1]
    assert places == [[str(rank % 3), "6", "3", str(rank // 3), "1", "127.0.0.1", port] for rank in range(6)]
    assert not alive(tmp_path / "pids")


def test_a_rank_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path, alive: Alive) -> None:
    lines = "if rank == 1:\n    print('experts do not divide')\n    sys.exit(3)\ntime.sleep(600)"
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of 2 .*exit code 3.*experts do not divide") as caught:
        run_ranks(python(tmp_path, lines), Loopback(1, 2), tmp_path / "log", timeout=60.0)
    assert (caught.value.rank, caught.value.cause) == (1, "exit code 3")
    assert not alive(tmp_path / "pids")


def test_a_killed_rank_is_named_before_those_that_lost_it(tmp_path: Path, alive: Alive) -> None:
    lines = (
        "if rank == 2:\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('all_to_all failed')\nsys.exit(1 if rank else 0)"
    )
    with pytest.raises(RankFailed, match=r"then rank 1: exit code 1") as caught:
        run_ranks(python(tmp_path, lines), Loopback(3, 1), tmp_path / "log", timeout=60.0)
    assert (caught.value.rank, caught.value.cause) == (2, "SIGKILL")
    assert not alive(tmp_path / "pids")


def test_a_rank_that_says_that_it_lost_a_peer_is_named_last(tmp_path: Path) -> None:
    lines = (
        "if rank == 0:\n    print('Connection closed by peer')\n    os.abort()\n"
        "time.sleep(0.5)\nraise ValueError('placement of 8 devices on 2 ranks')"
    )
    with pytest.raises(RankFailed, match="placement of 8 devices on 2 ranks") as caught:
        run_ranks(python(tmp_path, lines), Loopback(1, 2), tmp_path / "log", timeout=60.0)
    assert (caught.value.rank, caught.value.cause) == (1, "exit code 1")


def test_a_rank_that_hangs_is_named_and_tells_where(tmp_path: Path, alive: Alive) -> None:
    lines = "def stuck_here():\n    time.sleep(600)\nif rank == 1:\n    stuck_here()"
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of 2 .*running were: 1.*stuck_here") as caught:
        run_ranks(python(tmp_path, lines), Loopback(1, 2), tmp_path / "log", timeout=4.0)
    assert (caught.value.rank, caught.value.cause) == (1, "hung: no exit within 4 s")
    assert not alive(tmp_path / "pids")


def test_a_rank_that_hangs_by_itself_is_named_before_those_that_wait_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "distributed"
    folder.mkdir(parents=True)
    (folder / "waiting.py").write_text("import time\ntime.sleep(600)")
    lines = f"if rank != 2:\n    import runpy\n    runpy.run_path('{folder}/waiting.py')\ntime.sleep(600)"
    with pytest.raises(RankFailed, match="running were: 0, 1, 2") as caught:
        run_ranks(python(tmp_path, lines), Loopback(1, 3), tmp_path / "log", timeout=4.0)
    assert caught.value.rank == 2


def test_what_ignores_sigterm_and_what_ranks_started_ends_too(
    tmp_path: Path, alive: Alive, wait_until: Callable[[Callable[[], bool]], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "TERMINATE_SECONDS", 0.5)
    lines = (
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open(f'{tmp_path}/pids/{{child.pid}}', 'w').close()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if rank == 1:\n    sys.exit(3)\ntime.sleep(600)"
    )
    with pytest.raises(RankFailed):
        run_ranks(python(tmp_path, lines), Loopback(1, 2), tmp_path / "log", timeout=60.0)
    assert len(list((tmp_path / "pids").iterdir())) == 4
    assert wait_until(lambda: not alive(tmp_path / "pids"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_ranks_end_with_a_launcher_that_is_told_to(
    number: signal.Signals,
    tmp_path: Path,
    alive: Alive,
    launcher: Callable[[str], subprocess.Popen[str]],
    wait_until: Callable[[Callable[[], bool]], bool],
) -> None:
    if number == signal.SIGKILL and not shutil.which("setpriv"):
        pytest.skip("no setpriv (util-linux) here")
    process = launcher("Loopback(1, 2)")
    assert wait_until(lambda: len(alive(tmp_path / "pids")) == 2)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert wait_until(lambda: not alive(tmp_path / "pids"))
