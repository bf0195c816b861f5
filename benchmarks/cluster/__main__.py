"""Emulated clusters from a shell.

python -m benchmarks.cluster run --nodes 2 --devices 1 --rate 200mbit -- python script.py
python -m benchmarks.cluster up --nodes 4 --devices 2 --rate 200mbit
python -m benchmarks.cluster list
python -m benchmarks.cluster down
"""

import argparse
import re
from pathlib import Path

from benchmarks.cluster import namespaces
from benchmarks.cluster.emulated import EmulatedCluster
from benchmarks.cluster.ranks import RankFailed, run_ranks

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def rate(text: str) -> float:
    """Bits/s of `200mbit`, as `tc` writes it."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text.lower())):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write it as 200mbit or 1gbit")
    return float(match[1]) * UNITS[match[2]]


def run(options: argparse.Namespace) -> None:
    """Up, a command once a rank, down; then what the kernel counted."""
    with EmulatedCluster(options.nodes, options.devices, rate_bits_per_s=options.rate) as ground:
        run_ranks(options.command, ground, options.log, timeout=options.timeout)
        for node, seen in enumerate(ground.counters()):
            print(
                f"node {node}: {seen.sent_bytes} bytes sent, {seen.received_bytes} received, {seen.dropped_packets} "
                f"packets dropped, {seen.retransmitted_segments} segments retransmitted"
            )
    print(f"{ground.name}, {ground.num_ranks} ranks; logs: {options.log}")


def up(options: argparse.Namespace) -> None:
    """A cluster that stays until `down`."""
    ground = EmulatedCluster(options.nodes, options.devices, rate_bits_per_s=options.rate, owner=namespaces.KEPT)
    ground.set_up()
    print(f"{ground.name}: {', '.join(ground.node_names)}")
    settings = " ".join(f"{key}={value}" for key, value in ground.environment(0).items())
    print(f"run inside: {' '.join(ground.prefix(0))} env {settings} COMMAND")


def down(options: argparse.Namespace) -> None:
    """Remove what `up` made and what killed processes left; running measurements too if asked."""
    found = namespaces.existing()
    left = namespaces.left_behind()
    taken = [name for name, owner in found.items() if options.all or owner == namespaces.KEPT or name in left]
    namespaces.remove(taken)
    kept = sorted(set(found) - set(taken))
    print(f"removed {len(taken)}" + (f"; of running measurements, see --all: {', '.join(kept)}" if kept else ""))


def show(options: argparse.Namespace) -> None:
    """Our namespaces and whose they are."""
    left = namespaces.left_behind()
    for name, owner in namespaces.existing().items():
        whose = "until down" if owner == namespaces.KEPT else f"process {owner}"
        print(f"{name}  {'left behind' if name in left else whose}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for action, name in ((run, "run"), (up, "up"), (down, "down"), (show, "list")):
        command = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        command.set_defaults(action=action)
        if action in (run, up):
            command.add_argument("--nodes", type=int, default=2, help="default: %(default)s")
            command.add_argument("--devices", type=int, default=1, help="ranks a node, default: %(default)s")
            command.add_argument("--rate", type=rate, default=200e6, help="of each node's link, default: 200mbit")
        if action is run:
            command.add_argument("--timeout", type=float, default=600.0, help="seconds, default: %(default)s")
            command.add_argument("--log", type=Path, default=Path("outputs/cluster"), help="default: %(default)s")
            command.add_argument("command", nargs="+", help="after --: what each rank runs")
        if action is down:
            command.add_argument("--all", action="store_true", help="those of running measurements too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    try:
        options.action(options)
    except (ValueError, OSError, RankFailed) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
