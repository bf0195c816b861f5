import pytest
import torch

from benchmarks.cluster import best
from benchmarks.cluster.best import best_ground

LINKS = {"rate_bits_per_s": 1e9, "burst_bytes": 131072}


def test_devices_come_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert best_ground(2, 2, **LINKS).backend == "nccl"


@pytest.mark.parametrize("permitted", [True, False])
def test_an_emulated_cluster_where_namespaces_are_permitted_else_loopback(monkeypatch, permitted):
    def set_up(self):
        if not permitted:
            raise ValueError("not permitted")

    monkeypatch.setattr(best.EmulatedCluster, "set_up", set_up)
    monkeypatch.setattr(best.EmulatedCluster, "take_down", lambda self: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert best_ground(2, 2, **LINKS).name == ("emulated 1 Gbit/s" if permitted else "loopback")
