"""A ground: where the ranks of a measurement exchange their bytes, named in every result."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType

from benchmarks.cluster.counters import NodeCounters, refuse_if_dropped


class Ground(ABC):
    """Nodes of devices, one rank each: rank = node * devices_per_node + local rank. Entered before use.

    Args:
        nodes: N.
        devices_per_node: ranks a node.

    Attributes:
        name: as it stands in records.
        backend: of torch.distributed, gloo or nccl.

    Raises:
        ValueError: no ranks; on entry, the ground cannot be had on this machine.
    """

    def __init__(self, nodes: int, devices_per_node: int, name: str, backend: str) -> None:
        if min(nodes, devices_per_node) < 1:
            raise ValueError(f"{nodes} nodes of {devices_per_node} devices: both must be at least 1")
        self.nodes, self.devices_per_node = nodes, devices_per_node
        self.name, self.backend = name, backend

    @property
    def num_ranks(self) -> int:
        """G, ranks in all."""
        return self.nodes * self.devices_per_node

    def ranks(self) -> list[int]:
        """The ranks that are started from here: all, but where another launcher started a process a rank."""
        return list(range(self.num_ranks))

    def prefix(self, node: int) -> list[str]:
        """What stands before the command of a node's ranks."""
        return []

    @abstractmethod
    def environment(self, node: int) -> dict[str, str]:
        """What a node's ranks find in their environment, besides their place among the ranks."""

    def counters(self) -> tuple[NodeCounters, ...]:
        """What the kernel has counted of each node, N readings; none where nodes have no interface of their own."""
        return ()

    def refuse_if_dropped(self, before: Sequence[NodeCounters], after: Sequence[NodeCounters]) -> None:
        """Raises ValueError, with the numbers, where packets were dropped between two readings of `counters`."""
        refuse_if_dropped(before, after)

    def __enter__(self) -> "Ground":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Loopback(Ground):
    """All ranks on this machine's loopback interface, unshaped: bytes are real, but seconds are the scheduler's."""

    def __init__(self, nodes: int, devices_per_node: int) -> None:
        super().__init__(nodes, devices_per_node, "loopback", "gloo")

    def environment(self, node: int) -> dict[str, str]:
        return {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": loopback_interface()}


def loopback_interface() -> str:
    """`lo` on Linux, `lo0` elsewhere."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
