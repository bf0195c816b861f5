"""A cluster on one machine: nodes are network namespaces, links between them are limited in rate by the kernel. Ours.

Each node hangs at a bridge by a pair of veth interfaces; a token bucket (`tc tbf`) limits both directions. Ranks of one
node share its namespace and talk over its own loopback, unlimited. Only the rate is emulated, not the latency. Trust
times of exchanges that take at least 25 ms and move at least ten times the burst a node, with no packets dropped.
"""

import os
from contextlib import ExitStack
from types import TracebackType

from benchmarks.cluster import namespaces
from benchmarks.cluster.counters import INTERFACE, NodeCounters, read_counters, read_drops, run
from benchmarks.cluster.ground import Ground
from benchmarks.cluster.signals import leave_on_signals

MOST_NODES = 254
# an Ethernet frame with room for headers, and Linux' buffer
LEAST_PACKET_BYTES, MOST_PACKET_BYTES = 2048, 64 * 1024
NEEDS = (
    "an emulated cluster needs Linux, root (or a shell of `unshare -Urnm` after `mount -t tmpfs tmpfs /run`), ip and "
    "tc of iproute2, and the kernel's veth, bridge and sch_tbf; take ground=loopback where these are not to be had"
)


class EmulatedCluster(Ground):
    """Nodes joined by links of a given rate.

    Args:
        nodes: N, at most 254.
        devices_per_node: ranks a node.
        rate_bits_per_s: of each node's link, each way.
        burst_bytes: that may pass at once; above packet_bytes.
        packet_bytes: the largest buffer that the kernel hands over: the smaller, the smaller bursts can be, and the
            more work it is.
        queue_bytes: that may wait at a link: too few, and packets are dropped.
        owner: the process with whose end the namespaces become rubbish; default: this one.

    Raises:
        ValueError: a size that cannot be; on entry, where namespaces are not permitted.
    """

    def __init__(
        self,
        nodes: int,
        devices_per_node: int,
        *,
        rate_bits_per_s: float,
        burst_bytes: int = 256 * 1024,
        packet_bytes: int = MOST_PACKET_BYTES,
        queue_bytes: int = 64 * 1024**2,
        owner: int | None = None,
    ) -> None:
        super().__init__(nodes, devices_per_node, rate_name(rate_bits_per_s), "gloo")
        if nodes > MOST_NODES:
            raise ValueError(f"{nodes} nodes: there are addresses for {MOST_NODES}")
        if not LEAST_PACKET_BYTES <= packet_bytes <= MOST_PACKET_BYTES:
            raise ValueError(
                f"packets of {packet_bytes} bytes: the kernel hands over {LEAST_PACKET_BYTES} to {MOST_PACKET_BYTES}"
            )
        if burst_bytes <= packet_bytes:
            raise ValueError(f"burst of {burst_bytes} bytes: it must be above {packet_bytes}, the largest packet")
        self.rate_bits_per_s, self.burst_bytes, self.queue_bytes = rate_bits_per_s, burst_bytes, queue_bytes
        self.packet_bytes = packet_bytes
        self.owner = os.getpid() if owner is None else owner
        self._leaving = ExitStack()

    @property
    def bridge(self) -> str:
        """The bridge's namespace."""
        return namespaces.bridge_name(self.owner)

    @property
    def node_names(self) -> list[str]:
        """The nodes' namespaces."""
        return [namespaces.node_name(self.owner, node) for node in range(self.nodes)]

    def prefix(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", self.node_names[node]]

    def environment(self, node: int) -> dict[str, str]:
        return {"MASTER_ADDR": namespaces.address(0), "GLOO_SOCKET_IFNAME": INTERFACE}

    def counters(self) -> tuple[NodeCounters, ...]:
        dropped = read_drops(self.bridge)
        return tuple(read_counters(name, dropped[namespaces.port(node)]) for node, name in enumerate(self.node_names))

    def set_rate(self, rate_bits_per_s: float) -> None:
        """Limit all links to another rate; what waits in a queue stays there."""
        self.name, self.rate_bits_per_s = rate_name(rate_bits_per_s), rate_bits_per_s
        limits = ["rate", f"{rate_bits_per_s:.0f}bit", "burst", f"{self.burst_bytes}b", "limit", f"{self.queue_bytes}b"]
        for node, name in enumerate(self.node_names):
            for namespace, device in ((name, INTERFACE), (self.bridge, namespaces.port(node))):
                run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *limits)

    def set_up(self) -> None:
        """Make the namespaces, to stay until `take_down`.

        Raises:
            ValueError: namespaces are not permitted, or the owner has a cluster already.
        """
        with ExitStack() as stack:
            self._set_up(stack)
            stack.pop_all()

    def take_down(self) -> None:
        """End what runs inside and remove the namespaces."""
        namespaces.remove([self.bridge, *self.node_names])

    def _set_up(self, stack: ExitStack) -> None:
        """Remove what killed owners left and make ours; the stack takes it down again."""
        try:
            namespaces.remove(namespaces.left_behind())
            if mine := [name for name, owner in namespaces.existing().items() if owner == self.owner]:
                raise ValueError(f"process {self.owner} has a cluster already ({', '.join(mine)}): take that one down")
            stack.callback(self.take_down)
            namespaces.add_bridge(self.bridge)
            for node, name in enumerate(self.node_names):
                namespaces.add_node(name, node, self.bridge, self.packet_bytes)
            self.set_rate(self.rate_bits_per_s)
        except OSError as error:
            raise ValueError(f"{error}; {NEEDS}") from error

    def __enter__(self) -> "EmulatedCluster":
        with ExitStack() as stack:
            stack.enter_context(leave_on_signals())
            self._set_up(stack)
            self._leaving = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.close()


def rate_name(rate_bits_per_s: float) -> str:
    """How a rate stands in records: `emulated 200 Mbit/s`."""
    if not rate_bits_per_s >= 1e6:
        raise ValueError(f"rate of {rate_bits_per_s:g} bits/s: it must be at least 1e6")
    unit, name = (1e9, "Gbit/s") if rate_bits_per_s >= 1e9 else (1e6, "Mbit/s")
    return f"emulated {rate_bits_per_s / unit:g} {name}"
