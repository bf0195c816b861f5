"""What the kernel counted of a node's traffic, read from /proc and `tc`."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, dataclass

INTERFACE = "eth0"


@dataclass(frozen=True)
class NodeCounters:
    """One node's traffic so far; the difference of two readings is what happened between them.

    sent_bytes and received_bytes are those of the node's interface. Headers are in them once for each buffer that the
    kernel handed over (up to 64 KB), not once for each packet of 1,500 bytes: they lie closer to the payload than the
    bytes of a real wire do. dropped_packets are those of the queues that limit the rate, both directions;
    retransmitted_segments are TCP's, whatever the cause.
    """

    sent_bytes: int
    received_bytes: int
    dropped_packets: int
    retransmitted_segments: int

    def __sub__(self, earlier: "NodeCounters") -> "NodeCounters":
        return NodeCounters(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))


def read_counters(namespace: str | None = None, dropped_at_ingress: int = 0) -> NodeCounters:
    """A node's counters; without a namespace those of the node in which this process runs (queue towards it unseen).

    Args:
        dropped_at_ingress: packets dropped by the queue towards the node, which lies at its neighbour.
    """
    text = run("cat", "/proc/net/dev", "/proc/net/snmp", namespace=namespace)
    received, sent = parse_interface(text)
    dropped = sum(read_drops(namespace).values()) + dropped_at_ingress
    return NodeCounters(sent, received, dropped, parse_retransmitted(text))


def parse_interface(text: str, interface: str = INTERFACE) -> tuple[int, int]:
    """Bytes (received, sent) of an interface in the text of /proc/net/dev.

    Raises:
        ValueError: it is not there.
    """
    for line in text.splitlines():
        name, colon, figures = line.partition(":")
        if colon and name.strip() == interface:
            columns = figures.split()
            return int(columns[0]), int(columns[8])
    raise ValueError(f"no interface {interface} here: run inside a node of the cluster")


def parse_retransmitted(text: str) -> int:
    """TCP segments sent again, in the text of /proc/net/snmp: a line of names, then a line of figures."""
    names, figures = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(figures[names.index("RetransSegs")])


def read_drops(namespace: str | None) -> dict[str, int]:
    """Packets dropped by each device's queue."""
    queues = json.loads(run("tc", "-json", "-statistics", "qdisc", "show", namespace=namespace))
    return {queue["dev"]: queue["drops"] for queue in queues if queue["kind"] == "tbf"}


def refuse_if_dropped(before: Sequence[NodeCounters], after: Sequence[NodeCounters]) -> None:
    """A measurement with drops times TCP's recovery instead of the link.

    Raises:
        ValueError: a queue dropped packets between the readings.
    """
    since = [late - early for early, late in zip(before, after, strict=True)]
    if any(node.dropped_packets for node in since):
        told = ", ".join(
            f"node {index}: {node.dropped_packets} dropped, {node.retransmitted_segments} retransmitted"
            for index, node in enumerate(since)
        )
        raise ValueError(f"not a measurement, packets were dropped ({told}): take a longer queue or smaller messages")


def run(*command: str, namespace: str | None = None) -> str:
    """What a command prints, run inside a namespace if one is named.

    Raises:
        OSError: the program is missing or ended with an error; it names the command and what it said.
    """
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*inside, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"`{' '.join([*inside, *command])}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
