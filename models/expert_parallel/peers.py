"""Who takes part in a run, and whether all were told the same."""

import itertools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from torch.distributed import (
    DistNetworkError,
    DistStoreError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import PrefixStore

from models.expert_parallel.life import Life
from models.expert_parallel.watch import GRACE_SECONDS, Watch, wait


class Peers:
    """The ranks of a run as one of them sees the others, through a key-value store on rank 0. Joins on construction.

    Args:
        environment: says which rank this is, of how many, and where rank 0 is.
        facts: what this rank was told, to be compared.
        timeout_seconds: how long one waits for another.

    Attributes:
        rank: this one.
        world_size: how many there are.
        store: for the process group too.
        watch: over the others, from now on.

    Raises:
        ValueError: names the first rank and fact that differ from rank 0's; the number of ranks is one.
        RuntimeError: a rank did not come in time, or rank 0 has ended.
    """

    def __init__(self, environment: ClusterEnvironment, facts: Mapping[str, Any], timeout_seconds: float) -> None:
        self.rank, self.world_size = environment.global_rank(), environment.world_size()
        self.timeout_seconds = timeout_seconds
        self._num_agreed = 0
        store = _connect(environment, timeout_seconds)
        # several runs of one process, one after the other, share the address; so do torchrun's restarts
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"{attempt}/{store.add(f'{attempt}/joins/{self.rank}', 1)}"
        self.store = PrefixStore(prefix, store)
        self.store.set(f"life/{self.rank}", Life().write())
        self.store.compare_set("first_failure", "", "none")
        self.agree({"number of ranks": self.world_size, **facts})
        # a connection of its own: the process group's may be waiting for somebody
        apart = store.clone()  # pyright: ignore[reportAttributeAccessIssue]
        self.watch = Watch(self.rank, self.world_size, timeout_seconds, PrefixStore(prefix, apart))
        self.watch.start()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what ranks were told. All ranks call it, and all fail alike.

        Raises:
            ValueError: names the first rank and fact that differ from rank 0's.
            RuntimeError: a rank did not come in time, or rank 0 has ended.
        """
        number, self._num_agreed = self._num_agreed, self._num_agreed + 1
        self.store.set(f"told/{number}/{self.rank}", json.dumps({name: repr(fact) for name, fact in facts.items()}))
        try:
            expected = self._told(number, 0)
            # this one first: a rank that knows of fewer ranks may not be among them
            for rank in (self.rank, *range(self.world_size)):
                _refuse_difference(rank, self._told(number, rank), expected)
        finally:
            with suppress(RuntimeError):
                self.store.add(f"read/{number}", 1)
            # rank 0 takes its store with it
            if self.rank == 0:
                wait(GRACE_SECONDS, lambda: self.store.add(f"read/{number}", 0) >= self.world_size)

    def _told(self, number: int, rank: int) -> dict[str, str]:
        try:
            return json.loads(self.store.get(f"told/{number}/{rank}"))
        except DistNetworkError as error:
            raise RuntimeError("rank 0 is gone, and with it its store") from error
        except DistStoreError as error:
            raise RuntimeError(f"rank {rank} did not come within {self.timeout_seconds:g} s: killed or hung") from error


def _refuse_difference(rank: int, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name, value in expected.items():
        theirs = found.get(name, "nothing")
        if theirs != value:
            # long values differ somewhere in the middle
            same = (a == b for a, b in zip(theirs, value, strict=False))
            start = max(0, sum(itertools.takewhile(bool, same)) - 40)
            raise ValueError(
                f"rank {rank} was told {name} = {theirs[start : start + 160]}, rank 0 {value[start : start + 160]}"
            )


def _connect(environment: ClusterEnvironment, timeout_seconds: float) -> TCPStore:
    # torchrun's agent serves a store at this address already
    serves = environment.global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port, timeout = environment.main_address, environment.main_port, timedelta(seconds=timeout_seconds)
    try:
        return TCPStore(address, port, is_master=serves, timeout=timeout, wait_for_workers=False, multi_tenant=serves)
    except RuntimeError as error:
        if serves:
            raise
        message = f"rank 0 did not come to {address}:{port} within {timeout_seconds:g} s"
        raise RuntimeError(f"rank {environment.global_rank()}: {message}") from error
