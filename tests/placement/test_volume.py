"""Bytes of dispatch and combine, against loops that carry each token there and back."""

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.topology import Placement, Topology
from placement.volume import (
    ACCOUNTINGS,
    PER_NODE_STAGES,
    CommVolume,
    dispatch_layout,
    dispatch_volume,
    distinct_devices,
    nearest_replica,
    per_device,
    per_expert,
    per_node,
    remote_copies,
)
from traces.routing import RoutingTrace

EVERY_ACCOUNTING = pytest.mark.parametrize("accounting", ACCOUNTINGS, ids=lambda accounting: accounting.__name__)


def cluster(nodes: int, devices_per_node: int) -> Topology:
    return Topology(nodes, devices_per_node, 450e9, 100e9, 3.4e-6, 14e-6)


def random_case(
    make_trace, seed: int, shape: tuple[int, int], top_k: int, replicated: bool = False
) -> tuple[RoutingTrace, Placement, Topology]:
    """A trace with absent choices, a random placement and its cluster."""
    rng = np.random.default_rng(seed)
    topology, num_experts = cluster(*shape), 8
    num_devices = topology.num_devices
    chosen = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(2 * 2 * 12)]).reshape(2, 2, 12, top_k)
    chosen[rng.random(chosen.shape) < 0.2] = -1
    trace = make_trace(chosen.astype(np.int16), num_experts, rng.integers(num_devices, size=12))
    slots = np.full((2, num_devices, num_experts), -1)
    for layer in range(2):
        for expert in range(num_experts):
            holders = rng.permutation(num_devices)[: rng.integers(1, num_devices + 1) if replicated else 1]
            slots[layer, holders, expert] = expert
    return trace, Placement(slots), topology


def destination(placement: Placement, topology: Topology, layer: int, expert: int, source: int) -> int:
    """The slow choice of a replica: own device, own node, any."""
    holders = [g for g in range(topology.num_devices) if expert in placement.slots[layer, g]]
    node = topology.node_of_device
    near = [g for g in holders if node[g] == node[source]]
    return source if source in holders else (near or holders)[0]


def hops_out(name: str, source: int, devices: list[int], topology: Topology) -> list[tuple[int, int]]:
    """The rows that carry one token to its experts."""
    if name == "per_expert":
        return [(source, device) for device in devices]
    if name == "per_device":
        return [(source, device) for device in set(devices)]
    size, hops = topology.devices_per_node, []
    for node in {device // size for device in devices}:
        gateway = node * size + source % size
        hops += [(source, gateway)] if node != source // size else []
        hops += [(gateway, device) for device in set(devices) if device // size == node]
    return hops


def hops_back(name: str, source: int, devices: list[int], topology: Topology) -> list[tuple[int, int]]:
    """The rows that carry one token's results home: each sum travels once, from where its parts have met."""
    at = list(devices) if name == "per_expert" else sorted(set(devices))
    hops, size = [], topology.devices_per_node
    if name == "per_node":
        gateways = [device // size * size + source % size for device in at]
        hops = list(zip(at, gateways, strict=True))
        at = [gateway for gateway in set(gateways) if gateway != source]
    return hops + [(device, source) for device in at]


def walk(hops, name, trace, placement, topology) -> np.ndarray:
    rows = np.zeros((*trace.expert_indices.shape[:2], topology.num_devices, topology.num_devices), int)
    for step, layer, token in np.ndindex(trace.expert_indices.shape[:3]):
        source = int(trace.source_device[token])
        chosen = [int(expert) for expert in trace.expert_indices[step, layer, token] if expert >= 0]
        devices = [destination(placement, topology, layer, expert, source) for expert in chosen]
        for start, end in hops(name, source, devices, topology):
            rows[step, layer, start, end] += 1
    return rows


@EVERY_ACCOUNTING
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)]),
    top_k=st.integers(1, 5),
    replicated=st.booleans(),
)
def test_dispatch_and_combine_equal_the_walk_of_each_token(make_trace, accounting, seed, shape, top_k, replicated):
    case = random_case(make_trace, seed, shape, top_k, replicated)
    out, back = (walk(hops, accounting.__name__, *case) for hops in (hops_out, hops_back))
    np.testing.assert_array_equal(dispatch_volume(*case, 6, accounting).bytes, 6 * out)
    np.testing.assert_array_equal(dispatch_volume(*case, 6, accounting).reverse.bytes, 6 * back)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 2), (3, 2)]), st.integers(1, 5), st.booleans())
def test_what_each_accounting_saves_over_the_one_before(make_trace, seed, shape, top_k, replicated):
    trace, placement, topology = random_case(make_trace, seed, shape, top_k, replicated)
    expert, device, node = (dispatch_volume(trace, placement, topology, 2, each) for each in ACCOUNTINGS)
    # every choice is a row, whatever the placement
    np.testing.assert_array_equal(expert.bytes.sum((-2, -1)), 2 * (trace.expert_indices >= 0).sum((-2, -1)))
    assert (device.bytes <= expert.bytes).all()
    assert (node.inter_node <= device.inter_node).all()
    if top_k == 1:
        np.testing.assert_array_equal(device.bytes, expert.bytes)
    if not replicated:
        needed = distinct_devices(trace, placement) * len(trace.source_device)
        np.testing.assert_allclose(device.bytes.sum((-2, -1)) / 2, needed)


@EVERY_ACCOUNTING
@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_splitting_a_batch_adds_volumes(make_trace, accounting, seed, cut):
    trace, placement, topology = random_case(make_trace, seed, (2, 2), 3)
    parts = [
        make_trace(trace.expert_indices[:, :, part], trace.num_experts, trace.source_device[part])
        for part in (slice(cut), slice(cut, None))
    ]
    whole = dispatch_volume(trace, placement, topology, 4, accounting)
    first, second = (dispatch_volume(part, placement, topology, 4, accounting) for part in parts)
    np.testing.assert_array_equal((first + second).bytes, whole.bytes)


@EVERY_ACCOUNTING
def test_one_device_moves_nothing(make_trace, accounting):
    case = random_case(make_trace, 0, (1, 1), 3)
    volume = dispatch_volume(*case, 4, accounting)
    assert volume.local.min() > 0
    assert volume.intra_node.max() == volume.inter_node.max() == volume.busiest_device_egress.max() == 0
    assert remote_copies(*case, accounting).max() == 0.0


def test_a_worked_example(make_trace):
    # two nodes of two devices, expert e on device e // 2; one token from device 1 to experts 1, 2, 4, 6, 7
    placement = Placement(np.arange(8).reshape(1, 4, 2))
    case = make_trace(np.array([[[[1, 2, 4, 6, 7]]]]), 8, np.array([1])), placement, cluster(2, 2)
    rows = {each.__name__: dispatch_volume(*case, 1, each).bytes[0, 0].tolist() for each in ACCOUNTINGS}
    assert rows["per_expert"] == [[0, 0, 0, 0], [1, 1, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rows["per_device"] == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    # device 3 is the gateway: it keeps its row and forwards one to device 2
    assert rows["per_node"] == [[0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert distinct_devices(*case[:2]).tolist() == [[4.0]]
    copies = [remote_copies(*case, each).item() for each in (per_expert, per_device, per_node)]
    assert copies == [4.0, 3.0, 3.0]


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 2)]), st.booleans())
def test_each_stage_of_per_node_uses_one_kind_of_link(make_trace, seed, shape, replicated):
    case = random_case(make_trace, seed, shape, 3, replicated)
    crossing, forwarding = (dispatch_volume(*case, 2, stage) for stage in PER_NODE_STAGES)
    assert not (crossing.local + crossing.intra_node).any()
    assert not forwarding.inter_node.any()
    np.testing.assert_array_equal((crossing + forwarding).bytes, dispatch_volume(*case, 2, per_node).bytes)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 2), (3, 2)]))
def test_a_token_goes_to_the_nearest_replica(make_trace, seed, shape):
    _, placement, topology = random_case(make_trace, seed, shape, 1, replicated=True)
    nearest = nearest_replica(placement.holds[0], topology)
    for source, expert in np.ndindex(topology.num_devices, 8):
        assert nearest[source, expert] == destination(placement, topology, 0, expert, source)
    assert (nearest[:, -1] == -1).all()


def test_totals_and_busiest_of_a_known_volume():
    matrix = np.array([[9, 1, 2, 3], [0, 9, 4, 0], [5, 0, 9, 6], [0, 0, 7, 9]])
    volume = CommVolume(np.stack([matrix, 10 * matrix]), cluster(2, 2))
    assert volume.local.tolist() == [36, 360]
    assert volume.intra_node.tolist() == [14, 140]
    assert volume.inter_node.tolist() == [14, 140]
    assert volume.busiest_device_egress.tolist() == [11, 110]
    assert volume.busiest_device_ingress.tolist() == [13, 130]
    assert volume.busiest_node_egress.tolist() == [9, 90]
    assert volume.busiest_node_ingress.tolist() == [9, 90]
    assert volume.reverse.busiest_device_egress.tolist() == [13, 130]
    assert volume.sum().local.item() == 396
    assert (volume + volume.reverse).intra_node.tolist() == [28, 280]


def test_sum_takes_batch_axes_from_either_end():
    volume = CommVolume(np.arange(2 * 3 * 4).reshape(2, 3, 2, 2), cluster(1, 2))
    np.testing.assert_array_equal(volume.sum(-1).bytes, volume.bytes.sum(1))
    np.testing.assert_array_equal(volume.sum((0, 1)).bytes, volume.sum().bytes)
    with pytest.raises(ValueError, match="axis 2"):
        volume.sum(2)


def test_layout_of_a_batch_under_deepep_names():
    chosen = np.array([[0, 1, 7], [2, -1, 3], [-1, -1, -1]])
    layout = dispatch_layout(chosen, np.arange(8) // 2, cluster(2, 2))
    assert layout.num_tokens_per_rank.tolist() == [1, 1, 0, 1]
    assert layout.num_tokens_per_rdma_rank.tolist() == [2, 1]
    assert layout.num_tokens_per_expert.tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
    assert layout.is_token_in_rank.tolist() == [[True, False, False, True], [False, True, False, False], [False] * 4]


def test_what_does_not_fit_together_is_refused(make_trace, monkeypatch):
    trace, placement, topology = random_case(make_trace, 0, (2, 2), 2)
    with pytest.raises(ValueError, match="placement has 4 devices, the topology 8"):
        dispatch_volume(trace, placement, cluster(2, 4), 2, per_device)
    with pytest.raises(ValueError, match=r"trace has \(L, E\) = \(2, 8\), the placement \(1, 8\)"):
        distinct_devices(trace, Placement(placement.slots[:1]))
    far = make_trace(trace.expert_indices, 8, np.full(12, 4))
    with pytest.raises(ValueError, match=r"devices 4\.\.4, the topology has devices 0\.\.3"):
        dispatch_volume(far, placement, topology, 2, per_device)
    volume = dispatch_volume(trace, placement, topology, 2, per_device)
    with pytest.raises(ValueError, match="only volumes of one topology"):
        _ = volume + CommVolume(volume.bytes, cluster(1, 4))
    with pytest.raises(ValueError, match="only volumes of one topology and shape"):
        _ = volume + volume.sum(0)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"over 4 devices needs .* got \(2, 2\)"):
        CommVolume(np.zeros((2, 2), np.int64), topology)
