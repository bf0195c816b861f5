"""The emulated cluster: bytes, rate and drops as the kernel counts them, and nothing left behind, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cluster import namespaces
from benchmarks.cluster.__main__ import main, parse
from benchmarks.cluster.emulated import EmulatedCluster
from benchmarks.cluster.ranks import RankFailed, run_ranks

SWAP = """
import os, socket, sys, threading
size, rank = int(sys.argv[1]), int(os.environ["RANK"])
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(("", address[1])) as server:
        peer, _ = server.accept()
else:
    while True:
        try:
            peer = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            pass
sender = threading.Thread(target=peer.sendall, args=(bytes(size),))
sender.start()
left = size
while left:
    left -= len(peer.recv(1 << 20))
sender.join()
print("received", size)
"""


def swap(ground: EmulatedCluster, size: int, log: Path) -> None:
    """Two ranks, a node each, send each other `size` bytes."""
    run_ranks([sys.executable, "-c", SWAP, str(size)], ground, log, timeout=120.0)


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_counters_match_the_payload_and_the_rate_is_kept(tmp_path: Path) -> None:
    size = 10_000_000
    with EmulatedCluster(2, 1, rate_bits_per_s=50e6) as ground:
        for rate in (50e6, 200e6):
            ground.set_rate(rate)
            before, started = ground.counters(), time.monotonic()
            swap(ground, size, tmp_path / "log")
            seconds, after = time.monotonic() - started, ground.counters()
            ground.refuse_if_dropped(before, after)
            for node in (late - early for early, late in zip(before, after, strict=True)):
                assert size < node.sent_bytes < 1.03 * size
                assert size < node.received_bytes < 1.03 * size
                # two buckets, full at the start, and what the rate lets through: physics, however busy the machine
                assert node.received_bytes <= 2 * ground.burst_bytes + ground.rate_bits_per_s / 8 * seconds
        assert ground.name == "emulated 200 Mbit/s"
    assert (tmp_path / "log" / "rank-1.txt").read_text() == f"received {size}\n"


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_smaller_packets_let_bursts_be_small(tmp_path: Path) -> None:
    with EmulatedCluster(2, 1, rate_bits_per_s=10e6, burst_bytes=10_000, packet_bytes=8192) as ground:
        before, started = ground.counters(), time.monotonic()
        swap(ground, 1_000_000, tmp_path / "log")
        seconds, after = time.monotonic() - started, ground.counters()
        shown = namespaces.run("ip", "-n", ground.bridge, "-json", "-details", "link", "show", "dev", "port1")
    ground.refuse_if_dropped(before, after)
    assert json.loads(shown)[0]["gso_max_size"] == 8192
    assert seconds > 0.97 * 8e6 / 10e6


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_both_directions_are_limited_by_reno_on_the_route() -> None:
    with EmulatedCluster(3, 2, rate_bits_per_s=200e6) as ground:
        ground.set_rate(500e6)
        for namespace, device in ((ground.bridge, "port2"), (ground.node_names[2], "eth0")):
            shown = namespaces.run("tc", "-n", namespace, "-json", "qdisc", "show", "dev", device)
            (queue,) = json.loads(shown)
            assert (queue["kind"], queue["options"]["rate"]) == ("tbf", 500_000_000 // 8)
        routes = namespaces.run("ip", "-n", ground.node_names[1], "route")
        assert "10.77.0.0/24" in routes
        assert "congctl reno" in routes
        assert ground.prefix(2) == ["ip", "netns", "exec", f"moelab-{os.getpid()}-node2"]


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_a_short_queue_drops_and_is_refused(tmp_path: Path) -> None:
    with EmulatedCluster(2, 1, rate_bits_per_s=20e6, queue_bytes=100_000) as ground:
        before = ground.counters()
        swap(ground, 3_000_000, tmp_path / "log")
        with pytest.raises(ValueError, match="packets were dropped"):
            ground.refuse_if_dropped(before, ground.counters())


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_nothing_is_left_after_an_exception_and_one_cluster_a_process(tmp_path: Path) -> None:
    def fail() -> None:
        with EmulatedCluster(2, 2, rate_bits_per_s=200e6) as ground:
            with pytest.raises(ValueError, match="has a cluster already"):
                EmulatedCluster(2, 1, rate_bits_per_s=200e6).__enter__()
            assert set(ground.node_names) < set(namespaces.existing())
            run_ranks([sys.executable, "-c", "raise SystemExit(3)"], ground, tmp_path / "log", timeout=60.0)

    with pytest.raises(RankFailed, match="exit code 3"):
        fail()
    assert os.getpid() not in namespaces.existing().values()


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_is_left_after_an_owner_that_is_told_to_end(
    number: signal.Signals,
    tmp_path: Path,
    alive: Callable[[Path], list[int]],
    launcher: Callable[[str], subprocess.Popen[str]],
    wait_until: Callable[[Callable[[], bool]], bool],
) -> None:
    process = launcher("EmulatedCluster(2, 1, rate_bits_per_s=200e6)")
    assert wait_until(lambda: len(alive(tmp_path / "pids")) == 2)
    process.send_signal(number)
    process.wait(60)
    assert process.pid not in namespaces.existing().values()
    assert not alive(tmp_path / "pids")


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("next_entry", [True, False], ids=["next entry", "down"])
def test_what_a_killed_owner_left_is_removed(
    next_entry: bool,
    tmp_path: Path,
    alive: Callable[[Path], list[int]],
    launcher: Callable[[str], subprocess.Popen[str]],
    wait_until: Callable[[Callable[[], bool]], bool],
) -> None:
    process = launcher("EmulatedCluster(2, 1, rate_bits_per_s=200e6)")
    assert wait_until(lambda: len(alive(tmp_path / "pids")) == 2)
    process.kill()
    process.wait(60)
    assert process.pid in namespaces.existing().values()
    if next_entry:
        with EmulatedCluster(1, 1, rate_bits_per_s=200e6):
            assert process.pid not in namespaces.existing().values()
    else:
        main(["down"])
    assert process.pid not in namespaces.existing().values()
    assert wait_until(lambda: not alive(tmp_path / "pids"))


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_the_command_line_keeps_a_cluster_up_until_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmulatedCluster(1, 1, rate_bits_per_s=200e6) as running:
        main(["up", "--nodes", "2", "--rate", "500mbit"])
        assert "ip netns exec moelab-1-node0" in capsys.readouterr().out
        main(["list"])
        assert "moelab-1-node1  until down" in capsys.readouterr().out
        main(["down"])
        assert set(namespaces.existing()) >= {running.bridge, *running.node_names}
        assert 1 not in namespaces.existing().values()
    main(["run", "--nodes", "2", "--log", str(tmp_path), "--", sys.executable, "-c", "print('-- here')"])
    assert "emulated 200 Mbit/s, 2 ranks" in capsys.readouterr().out
    assert [(tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1)] == ["-- here\n"] * 2
    with pytest.raises(SystemExit, match=r"(?s)error: rank 0 .*exit code 7"):
        main(["run", "--nodes", "1", "--log", str(tmp_path), "--", sys.executable, "-c", "raise SystemExit(7)"])


def test_rates_are_written_as_tc_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["up", "--rate", "1gbit"]).rate == 1e9
    assert parse(["run", "--rate", "2.5Mbit", "--", "python", "-c", "x"]).command == ["python", "-c", "x"]
    with pytest.raises(SystemExit):
        parse(["up", "--rate", "fast"])
    assert "'fast' is no rate" in capsys.readouterr().err
