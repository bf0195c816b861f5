"""Which rank is the cause when a run stands still or fails.

Every rank tells the others twice a second that it lives and how far it is. An exception is explained from that. A rank
that cannot raise one, as its main thread waits in NCCL or hangs itself, is ended by a thread that watches.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from models.expert_parallel.life import Life, main_place, ranks_behind, silent_ranks

BEAT_SECONDS = 0.5
"""Between two signs of life."""

SILENT_SECONDS = 3.0
"""Once a run has failed, a rank that gave no sign for so long is the cause."""

GRACE_SECONDS = 8.0
"""For a rank to end by itself once a fault is known, and for rank 0 to keep its store for the others."""


class Watch:
    """Signs of life of all ranks as one of them sees them.

    Args:
        rank: this one.
        world_size: how many there are.
        timeout_seconds: how long one waits for another.
        store: that all share, by a connection that nobody else uses; it holds `life/RANK` of all, and
            `first_failure` = none.

    Attributes:
        step: the optimiser step this rank is in, kept by its owner.
        groups: whose collectives count, kept by its owner.
    """

    def __init__(self, rank: int, world_size: int, timeout_seconds: float, store: Store) -> None:
        self.rank, self.timeout_seconds, self.store = rank, timeout_seconds, store
        self.step = 0
        self.groups: list[dist.ProcessGroup] = []
        now = time.monotonic()
        self._own = Life()
        self._lives = [self._own] * world_size
        self._heard_at = [now] * world_size
        self._called_at = self._level_at = now
        self._failure = ""
        self._first_failure = ""
        self._fault_since: float | None = None
        self._wake, self._leave = threading.Event(), threading.Event()
        self._talker = threading.Thread(target=self._talk, daemon=True)

    def start(self) -> None:
        """Give signs of life from now on."""
        self._talker.start()
        threading.Thread(target=self._end_when_overdue, daemon=True).start()

    def explain(self, exception: Exception) -> None:
        """Add to an exception which rank is the cause, as far as can be told, and tell the others of it."""
        self._failure = f"{type(exception).__name__}: {exception}"[:500]
        self._wake.set()
        now = time.monotonic()
        if len(self._lives) > 1:
            # others fail of the same loss: their failures must not be taken for the cause
            wait(
                SILENT_SECONDS + 2 * BEAT_SECONDS,
                lambda: self._heard_at[self.rank] > now and self._silent(SILENT_SECONDS),
            )
        for finding in self._findings(SILENT_SECONDS):
            exception.add_note(finding)

    def leave(self) -> None:
        """Give no more signs of life; rank 0 stays until the others have left or know that the run has failed."""
        if self._leave.is_set():
            return
        self._leave.set()
        self._wake.set()
        self._talker.join(SILENT_SECONDS)
        # rank 0 takes its store with it
        if self.rank == 0:
            with suppress(RuntimeError):
                wait(GRACE_SECONDS, self._is_settled)

    def _is_settled(self) -> bool:
        self._listen()
        silent = self._silent(SILENT_SECONDS)
        others = [(rank, life) for rank, life in enumerate(self._lives) if rank != self.rank]
        return all(life.left or (life.knows and not life.failure) or rank in silent for rank, life in others)

    def _talk(self) -> None:
        # a store that is gone or hangs is not heard any more, which tells enough
        with suppress(RuntimeError):
            while not self._own.left:
                self._tell()
                self._listen()
                self._wake.wait(BEAT_SECONDS)
                self._wake.clear()

    def _tell(self) -> None:
        calls = sum(map(num_calls, self.groups))
        if calls != self._own.calls:
            self._called_at = time.monotonic()
        self._own = Life(
            beat=self._own.beat + 1,
            step=self.step,
            calls=calls,
            place=main_place(),
            failure=self._failure,
            knows=self._fault_since is not None,
            left=self._leave.is_set(),
        )
        self.store.set(f"life/{self.rank}", self._own.write())
        if self._failure:
            self.store.compare_set("first_failure", "none", f"rank {self.rank}: {self._failure}")

    def _listen(self) -> None:
        keys = [f"life/{rank}" for rank in range(len(self._lives))]
        *lives, first_failure = self.store.multi_get([*keys, "first_failure"])
        now, before = time.monotonic(), self._lives
        self._lives = [Life.read(life) for life in lives]
        for rank, life in enumerate(self._lives):
            if life.beat != before[rank].beat:
                self._heard_at[rank] = now
        if self.rank not in ranks_behind(self._lives):
            self._level_at = now
        self._first_failure = first_failure.decode()

    def _silent(self, limit_seconds: float) -> list[int]:
        now = time.monotonic()
        return silent_ranks(self._lives, [now - at for at in self._heard_at], limit_seconds)

    def _findings(self, silent_seconds: float) -> list[str]:
        """What is known to be wrong."""
        silent = self._silent(silent_seconds)
        if self.rank in silent:
            # what this rank told did not come back
            return ["rank 0's store does not answer: rank 0 was killed or hangs"]
        if silent:
            return [self._of_silent(rank) for rank in silent]
        found = []
        # those ahead wait since their last call; one that is behind is waited for since it fell behind
        since = self._called_at if self.rank not in ranks_behind(self._lives) else max(self._called_at, self._level_at)
        if time.monotonic() - since >= self.timeout_seconds - 2 * BEAT_SECONDS:
            found = [f"rank {rank} is behind, at {self._lives[rank].whereabouts}" for rank in ranks_behind(self._lives)]
        by, _, failure = self._first_failure.partition(": ")
        if failure and by != f"rank {self.rank}" and failure != self._failure:
            found.append(f"the first to fail was {self._first_failure}")
        return found

    def _of_silent(self, rank: int) -> str:
        seconds = time.monotonic() - self._heard_at[rank]
        where = self._lives[rank].whereabouts
        return f"rank {rank} gave no sign of life for {seconds:.0f} s: killed or hung; last seen at {where}"

    def _end_when_overdue(self) -> None:
        while not self._leave.wait(BEAT_SECONDS):
            if not (self._failure or self._findings(self.timeout_seconds)):
                # one that was late came after all
                self._fault_since = None
            elif self._fault_since is None:
                self._fault_since = time.monotonic()
            # callbacks and loggers of a rank that fails by itself may take their time
            patience = max(self.timeout_seconds, GRACE_SECONDS) if self._failure else GRACE_SECONDS
            if self._fault_since is not None and time.monotonic() - self._fault_since > patience:
                self._end()

    def _end(self) -> None:
        """End the process from this thread, telling why and where the main thread is."""
        found = "; ".join(filter(None, [self._failure, *self._findings(SILENT_SECONDS)]))
        print(f"rank {self.rank} is ended: {found}", file=sys.stderr, flush=True)
        with suppress(Exception):
            faulthandler.dump_traceback()
        os._exit(1)


def num_calls(group: dist.ProcessGroup) -> int:
    """Collectives that this rank has begun in a group; 0 where its backends do not count them together."""
    try:
        return group._get_sequence_number_for_group()  # pyright: ignore[reportAttributeAccessIssue]
    except RuntimeError:
        return 0


def wait(seconds: float, done: Callable[[], object]) -> None:
    """Until something is done, or for so long."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
