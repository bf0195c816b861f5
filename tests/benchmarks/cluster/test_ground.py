"""Grounds without namespaces: places, names, refusals, and their configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.cluster.counters import NodeCounters, parse_interface, parse_retransmitted, read_counters
from benchmarks.cluster.cuda import Cuda
from benchmarks.cluster.emulated import EmulatedCluster
from benchmarks.cluster.ground import Ground, Loopback

CONF = Path(__file__).resolve().parents[3] / "conf" / "ground"
LINKS = """Inter-|   Receive                            |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:   10       1    0    0    0     0          0         0    10       1    0    0    0     0       0          0
  eth0: 300123  2000    0    0    0     0          0         0 400456   3000    0    0    0     0       0          0
"""
TCP = """Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm InSegs OutSegs RetransSegs InErrs
Tcp: 1 500 600 7 0
"""


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ground_is_made_from_nodes_and_devices(path: Path) -> None:
    make = cast(Callable[[int, int], Ground], instantiate(OmegaConf.load(path)))
    ground = make(2, 3)
    assert ground.num_ranks == 6
    # which one "best" is depends on the machine
    assert path.stem == "best" or ground.name.startswith(path.stem.split("_")[0])
    assert ground.backend == ("nccl" if isinstance(ground, Cuda) else "gloo")


@pytest.mark.parametrize(
    ("rate", "name"),
    [(200e6, "emulated 200 Mbit/s"), (1e9, "emulated 1 Gbit/s"), (2.5e9, "emulated 2.5 Gbit/s")],
)
def test_an_emulated_cluster_is_named_by_its_rate(rate: float, name: str) -> None:
    assert EmulatedCluster(2, 1, rate_bits_per_s=rate).name == name


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Loopback(0, 2), "0 nodes"),
        (lambda: EmulatedCluster(300, 1, rate_bits_per_s=1e9), "300 nodes"),
        (lambda: EmulatedCluster(2, 1, rate_bits_per_s=200.0), "rate of 200 bits/s"),
        (lambda: EmulatedCluster(2, 1, rate_bits_per_s=1e9, burst_bytes=1500), "burst of 1500 bytes"),
        (lambda: EmulatedCluster(2, 1, rate_bits_per_s=1e9, burst_bytes=9000, packet_bytes=9000), "above 9000, the"),
        (lambda: EmulatedCluster(2, 1, rate_bits_per_s=1e9, packet_bytes=100), "packets of 100 bytes"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Ground], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_without_iproute2_the_alternative_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs Linux, root .*ground=loopback"):
        EmulatedCluster(2, 1, rate_bits_per_s=1e9).__enter__()


def test_nodes_of_one_machine_share_out_its_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with Cuda(2, 2) as ground:
        assert ground.name == "nccl, 2 nodes on one machine"
        assert [ground.environment(node)["CUDA_VISIBLE_DEVICES"] for node in (0, 1)] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="8 ranks need as many CUDA devices, this machine has 4"):
        Cuda(1, 8).__enter__()


def test_under_torchrun_a_process_starts_its_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}
    for key, value in launched.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with Cuda(2, 4) as ground:
        assert ground.ranks() == [5]
        assert ground.environment(1) == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}
        assert ground.name == "nccl"
    with pytest.raises(ValueError, match="torchrun started 8 ranks, 3 x 4"):
        Cuda(3, 4).__enter__()


def test_counters_are_read_from_the_kernel_s_tables() -> None:
    assert parse_interface(LINKS) == (300123, 400456)
    assert parse_retransmitted(TCP) == 7
    with pytest.raises(ValueError, match="no interface eth9"):
        parse_interface(LINKS, "eth9")


def test_drops_between_two_readings_make_no_measurement() -> None:
    before = (NodeCounters(10, 20, 3, 1), NodeCounters(0, 0, 0, 0))
    after = (NodeCounters(110, 220, 3, 5), NodeCounters(50, 60, 0, 0))
    assert after[0] - before[0] == NodeCounters(100, 200, 0, 4)
    ground = Loopback(2, 1)
    ground.refuse_if_dropped(before, after)
    with pytest.raises(ValueError, match="node 0: 0 dropped, 4 retransmitted, node 1: 2 dropped"):
        ground.refuse_if_dropped(before, (after[0], NodeCounters(50, 60, 2, 0)))


def test_counting_outside_of_a_node_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.cluster.counters.run", lambda *command, namespace=None: TCP)
    with pytest.raises(ValueError, match="no interface eth0 here"):
        read_counters()
