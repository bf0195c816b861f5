"""Network namespaces as nodes, made and removed with `ip` (iproute2).

Nodes are joined by a bridge in a namespace of its own, so that the machine's own namespace gets no address and no
route. Names carry the process that owns them: what a killed owner left is found by that and removed.
"""

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.cluster.counters import INTERFACE, run
from benchmarks.cluster.signals import undisturbed

NAME = re.compile(r"moelab-(\d+)-(?:bridge|node\d+)")
# the owner of a cluster that outlives the command that made it: process 1 never ends
KEPT = 1


def bridge_name(owner: int) -> str:
    return f"moelab-{owner}-bridge"


def node_name(owner: int, node: int) -> str:
    return f"moelab-{owner}-node{node}"


def address(node: int) -> str:
    return f"10.77.0.{node + 1}"


def add_bridge(bridge: str) -> None:
    """A namespace with nothing but a bridge; it learns nothing and says nothing by itself."""
    run("ip", "netns", "add", bridge)
    run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
    run("ip", "-n", bridge, "link", "set", "bridge", "addrgenmode", "none", "up")


def add_node(name: str, node: int, bridge: str, packet_bytes: int) -> None:
    """A namespace whose interface hangs at the bridge's port of the node's number; packets are so large at most."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "-n", bridge, "link", "add", port(node), "type", "veth", "peer", "name", INTERFACE, "netns", name)
    run("ip", "-n", bridge, "link", "set", port(node), "master", "bridge", "addrgenmode", "none", "up")
    run("ip", "-n", name, "addr", "add", f"{address(node)}/24", "dev", INTERFACE)
    for namespace, device in ((name, INTERFACE), (bridge, port(node))):
        run("ip", "-n", namespace, "link", "set", device, "gso_max_size", str(packet_bytes))
    # no IPv6 address: its neighbour discovery would stand in the counters
    run("ip", "-n", name, "link", "set", INTERFACE, "addrgenmode", "none", "up")
    # reno keeps a shaped link at 85-90 % of its rate, bbr at 75-80 %, and the machine's default may be either
    route = ["10.77.0.0/24", "dev", INTERFACE, "proto", "kernel", "scope", "link", "src", address(node)]
    run("ip", "-n", name, "route", "change", *route, "congctl", "reno")


def port(node: int) -> str:
    return f"port{node}"


def existing() -> dict[str, int]:
    """Our namespaces on this machine, and the process that owns each."""
    names = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]
    return {name: int(match[1]) for name in names if (match := NAME.fullmatch(name))}


def left_behind() -> list[str]:
    """Our namespaces whose owner has ended."""
    return [name for name, owner in existing().items() if not is_alive(owner)]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that ended and was never waited for does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def remove(names: Iterable[str]) -> None:
    """End what runs inside, then remove the namespaces; names that are not there are no error.

    Raises:
        OSError: one could not be removed.
    """
    with undisturbed():
        for name in sorted(set(names) & set(existing())):
            try:
                _remove(name)
            except OSError:
                # two that start at once find the same rubbish
                if name in existing():
                    raise


def _remove(name: str) -> None:
    for process in run("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    run("ip", "netns", "delete", name)
