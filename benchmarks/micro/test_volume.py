"""Tokens a second through the byte count of dispatch, by way of counting; a loop over tokens beside it."""

import jaxtyping
import numpy as np
import pytest

from placement.topology import Placement, Topology
from placement.volume import ACCOUNTINGS, dispatch_volume, per_device
from traces.load import TraceSource
from traces.routing import RoutingTrace

NUM_TOKENS, NUM_EXPERTS, TOP_K = 200_000, 64, 8
TOPOLOGY = Topology(4, 8, 450e9, 400e9, 3.4e-6, 14e-6)


@pytest.fixture(autouse=True)
def as_in_a_run(monkeypatch):
    """No shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def placement() -> Placement:
    return Placement(np.arange(NUM_EXPERTS).reshape(1, TOPOLOGY.num_devices, -1))


def trace(num_tokens: int) -> RoutingTrace:
    rng = np.random.default_rng(0)
    chosen = rng.random((1, 1, num_tokens, NUM_EXPERTS), np.float32).argpartition(TOP_K, axis=-1)[..., :TOP_K]
    source_device = rng.integers(TOPOLOGY.num_devices, size=num_tokens).astype(np.int16)
    source = TraceSource("none", "uniform", 0, num_tokens, TOP_K, "none", "0")
    return RoutingTrace(np.arange(1), chosen.astype(np.int16), source_device, NUM_EXPERTS, source)


def loop(routed: RoutingTrace, placement: Placement) -> np.ndarray:
    """Rows of `per_device`, token by token."""
    rows = np.zeros((TOPOLOGY.num_devices, TOPOLOGY.num_devices), np.int64)
    device_E = placement.device_of_expert[0]
    for source, chosen in zip(routed.source_device, routed.expert_indices[0, 0], strict=True):
        rows[source, list(set(device_E[chosen].tolist()))] += 1
    return rows


def tell(benchmark, num_tokens: int) -> None:
    if benchmark.enabled:
        rate = round(num_tokens / benchmark.stats.stats.median)
        benchmark.extra_info["tokens_per_second"] = rate
        print(f"\n{benchmark.name}: {rate:,} tokens/s, top {TOP_K}, {TOPOLOGY.num_devices} devices")


@pytest.mark.parametrize("accounting", ACCOUNTINGS, ids=lambda accounting: accounting.__name__)
def test_counting(benchmark, placement, accounting):
    benchmark.group = "volume"
    routed = trace(NUM_TOKENS)
    volume = benchmark(dispatch_volume, routed, placement, TOPOLOGY, 1, accounting)
    assert volume.bytes.sum() >= NUM_TOKENS
    tell(benchmark, NUM_TOKENS)


def test_loop(benchmark, placement):
    benchmark.group = "volume"
    routed = trace(NUM_TOKENS // 20)
    rows = benchmark(loop, routed, placement)
    np.testing.assert_array_equal(rows, dispatch_volume(routed, placement, TOPOLOGY, 1, per_device).bytes[0, 0])
    tell(benchmark, NUM_TOKENS // 20)
