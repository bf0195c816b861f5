"""The launcher of ranks: starts them on a ground, watches all, and ends all when one fails or the time is up."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.ground import Ground
from benchmarks.cluster.signals import leave_on_signals, undisturbed

POLL_SECONDS = 0.05
# after the first failure: the rank that caused it may be seen later than those that lost it
GRACE_SECONDS = 2.0
# between SIGTERM and SIGKILL
TERMINATE_SECONDS = 5.0
TAIL_LINES = 40
LOST_PEER = re.compile(
    r"closed by peer|reset by peer|refused|Broken pipe|got 0 bytes|remote process exited|DistNetworkError"
)
WAITS_FOR_PEERS = "torch/distributed"
# what `models.expert_parallel.watch` lets survivors say of the rank that they lost
LOST_RANK = re.compile(r"rank (\d+) (gave no sign of life|is behind)")


class RankFailed(RuntimeError):
    """A rank ended with an error or not at all; all others were ended.

    Attributes:
        rank: the first cause, as far as it can be told.
        cause: `exit code 3`, `SIGKILL`, or `hung: no exit within 30 s`.
    """

    def __init__(self, rank: int, cause: str, message: str) -> None:
        super().__init__(message)
        self.rank, self.cause = rank, cause


@dataclass(frozen=True)
class Rank:
    """A rank that was started, and where its output goes."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])

    @property
    def cause(self) -> str:
        """Why it ended: exit code or signal."""
        code = self.process.returncode
        names = {number.value: number.name for number in signal.Signals}
        return f"exit code {code}" if code >= 0 else names.get(-code, f"signal {-code}")

    def send(self, number: int) -> None:
        """Signal it and what it started; that it has ended is no error."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def run_ranks(command: Sequence[str], ground: Ground, log: Path, *, timeout: float) -> None:
    """Run a command once a rank and wait for all; whatever happens, none is left running.

    Each finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT, as torchrun would
    set them, and what the ground adds.

    Args:
        ground: entered.
        log: folder for `rank-N.txt`, what rank N wrote to stdout and stderr.
        timeout: seconds after which ranks that still run are taken to hang.

    Raises:
        RankFailed: with the rank, the cause and the last lines of its log.
    """
    log.mkdir(parents=True, exist_ok=True)
    ranks: list[Rank] = []
    master_port = str(free_port())
    with leave_on_signals():
        try:
            for rank in ground.ranks():
                ranks.append(start(command, ground, log, rank, master_port))
            failed, hung = watch(ranks, timeout)
            if failed:
                raise of_failed(failed, ground)
            if hung:
                raise of_hung(hung, ground, timeout)
        finally:
            end(ranks)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: Sequence[str], ground: Ground, log: Path, rank: int, master_port: str) -> Rank:
    """Start one rank as the head of its own process group."""
    node, local = divmod(rank, ground.devices_per_node)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # a rank that hangs is aborted, and then tells where
        "PYTHONFAULTHANDLER": "1",
        "MASTER_PORT": master_port,
        **ground.environment(node),
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(ground.num_ranks),
        "LOCAL_WORLD_SIZE": str(ground.devices_per_node),
        "NODE_RANK": str(node),
    }
    # ranks do not outlive a launcher that is killed; where there is no setpriv they end by themselves
    bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    path = log / f"rank-{rank}.txt"
    with path.open("wb") as file:
        process = subprocess.Popen(
            [*bound, *ground.prefix(node), *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Rank(rank, process, path)


def watch(ranks: list[Rank], timeout: float) -> tuple[list[Rank], list[Rank]]:
    """Wait for all, to the time-out, or for a short while after the first failure.

    Returns:
        ranks that failed, in the order in which that was seen, and ranks that still run.
    """
    deadline = time.monotonic() + timeout
    failed: list[Rank] = []
    while True:
        codes = [rank.process.poll() for rank in ranks]
        fresh = [rank for rank, code in zip(ranks, codes, strict=True) if code and rank not in failed]
        if fresh and not failed:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        failed += fresh
        running = [rank for rank, code in zip(ranks, codes, strict=True) if code is None]
        if not running or time.monotonic() >= deadline:
            return failed, running
        time.sleep(POLL_SECONDS)


def of_failed(failed: list[Rank], ground: Ground) -> RankFailed:
    """The error of the rank that most likely failed by itself, told with the others' causes."""
    first, *others = sorted(failed, key=blame)
    told = "".join(f"; then rank {rank.rank}: {rank.cause}" for rank in others)
    # a rank that was killed needs no witness
    lost = LOST_RANK.search(first.tail()) if blame(first) else None
    if lost:
        rank, cause = int(lost[1]), lost[2]
        happened = f"{cause}, says rank {first.rank}, which ended with {first.cause}"
    else:
        rank, cause, happened = first.rank, first.cause, f"ended with {first.cause}"
    where = f"rank {rank} of {ground.num_ranks} (node {rank // ground.devices_per_node}, {ground.name})"
    return RankFailed(rank, cause, f"{where} {happened}{told}\n{quoted(first)}")


def blame(rank: Rank) -> int:
    """0 for a rank that was killed (SIGABRT is its own doing), 2 for one that says that it lost another, 1 else."""
    if rank.process.returncode < 0 and rank.process.returncode != -signal.SIGABRT:
        return 0
    return 2 if LOST_PEER.search(rank.tail()) else 1


def of_hung(hung: list[Rank], ground: Ground, timeout: float) -> RankFailed:
    """The error of a rank that did not end: of one that does not wait for others, if its stack tells.

    All are aborted, upon which Python writes their stacks to their logs.
    """
    for rank in hung:
        rank.send(signal.SIGABRT)
    wait(hung, GRACE_SECONDS)
    first = min(hung, key=lambda rank: WAITS_FOR_PEERS in rank.tail())
    cause = f"hung: no exit within {timeout:g} s"
    among = ", ".join(str(rank.rank) for rank in hung)
    message = f"rank {first.rank} of {ground.num_ranks} ({ground.name}) {cause} (running were: {among})"
    return RankFailed(first.rank, cause, f"{message}\n{quoted(first)}")


def quoted(rank: Rank) -> str:
    return f"{rank.log} ends with:\n{rank.tail() or '(it is empty)'}"


def end(ranks: list[Rank]) -> None:
    """End all that still runs, and what they started: first asked, then killed."""
    with undisturbed():
        running = [rank for rank in ranks if rank.process.poll() is None]
        for rank in running:
            rank.send(signal.SIGTERM)
        wait(running, TERMINATE_SECONDS)
        for rank in ranks:
            rank.send(signal.SIGKILL)
            rank.process.wait()


def wait(ranks: list[Rank], seconds: float) -> None:
    """Until all have ended, or for so long."""
    deadline = time.monotonic() + seconds
    while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
