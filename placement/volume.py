"""Bytes that a placement makes devices send one another, and three ways to count them.

Dispatch carries a token's row from its source device to its experts, combine carries the results back. What that takes
depends on the dispatcher:

- `per_expert`: one row for every choice, even two on one device (Gale et al., 2022, arXiv 2211.15841: MegaBlocks).
- `per_device`: one row for every distinct device; combine returns one summed row from each (Luo et al., 2025,
  arXiv 2505.13345: Occult; also DeepEP within a node).
- `per_node`: one row for every distinct remote node, to the device there with the source's index in its own node
  (the gateway), which forwards one row to every distinct device of its node; within the source's own node as
  `per_device`. Combine sums at the gateway (DeepEP between nodes).

Rows that stay on a device move no byte over a link; they are counted as `local`, also those that a gateway keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy.lib.array_utils import normalize_axis_tuple

from placement.topology import Placement, Topology
from traces.routing import RoutingTrace

# (source device (T,), device of each choice (T, K) or -1, cluster) -> rows sent (G, G) by source and destination
Accounting = Callable[[np.ndarray, np.ndarray, Topology], np.ndarray]


@dataclass(frozen=True, eq=False)
class CommVolume:
    """Bytes by source and destination device: dispatch, combine and migration share it, so they add.

    Attributes:
        bytes: (*B, G, G) from device g (row) to device h (column); the diagonal stays on the device.
        topology: the cluster of these devices.

    Raises:
        ValueError: bytes are not (..., G, G) for the topology's G.
    """

    bytes: Int[np.ndarray, "*B G G"]
    topology: Topology

    def __post_init__(self) -> None:
        num_devices = self.topology.num_devices
        if self.bytes.shape[-2:] != (num_devices, num_devices):
            raise ValueError(f"a volume over {num_devices} devices needs bytes (..., G, G), got {self.bytes.shape}")

    @property
    def local(self) -> Int[np.ndarray, "*B"]:
        """Bytes that stay on their device."""
        return self._total(np.eye(self.topology.num_devices, dtype=bool))

    @property
    def intra_node(self) -> Int[np.ndarray, "*B"]:
        """Bytes between devices of one node."""
        return self._total(self._same_node & ~np.eye(self.topology.num_devices, dtype=bool))

    @property
    def inter_node(self) -> Int[np.ndarray, "*B"]:
        """Bytes between nodes."""
        return self._total(~self._same_node)

    @property
    def busiest_device_egress(self) -> Int[np.ndarray, "*B"]:
        """Most bytes that one device sends to others."""
        return np.asarray(self._between_devices.sum(-1).max(-1))

    @property
    def busiest_device_ingress(self) -> Int[np.ndarray, "*B"]:
        """Most bytes that one device gets from others."""
        return np.asarray(self._between_devices.sum(-2).max(-1))

    @property
    def busiest_node_egress(self) -> Int[np.ndarray, "*B"]:
        """Most bytes that one node sends to other nodes."""
        return np.asarray(self._between_nodes.sum(-1).max(-1))

    @property
    def busiest_node_ingress(self) -> Int[np.ndarray, "*B"]:
        """Most bytes that one node gets from other nodes."""
        return np.asarray(self._between_nodes.sum(-2).max(-1))

    @property
    def reverse(self) -> "CommVolume":
        """The same bytes sent back the way they came: what combine is to dispatch."""
        return CommVolume(self.bytes.swapaxes(-1, -2), self.topology)

    def sum(self, axis: int | tuple[int, ...] | None = None) -> "CommVolume":
        """Volume summed over batch axes, all of them by default; -1 is the last batch axis."""
        num_batch_axes = self.bytes.ndim - 2
        axes = range(num_batch_axes) if axis is None else normalize_axis_tuple(axis, num_batch_axes)
        return CommVolume(self.bytes.sum(tuple(axes)), self.topology)

    def __add__(self, other: "CommVolume") -> "CommVolume":
        if self.topology != other.topology or self.bytes.shape != other.bytes.shape:
            raise ValueError(
                "only volumes of one topology and shape add, "
                f"got {self.bytes.shape} on {self.topology} and {other.bytes.shape} on {other.topology}"
            )
        return CommVolume(self.bytes + other.bytes, self.topology)

    @property
    def _same_node(self) -> Bool[np.ndarray, "G G"]:
        node_G = self.topology.node_of_device
        return node_G[:, None] == node_G

    @property
    def _between_devices(self) -> Int[np.ndarray, "*B G G"]:
        return self.bytes * ~np.eye(self.topology.num_devices, dtype=bool)

    @property
    def _between_nodes(self) -> Int[np.ndarray, "*B N N"]:
        nodes, size = self.topology.nodes, self.topology.devices_per_node
        remote = self.bytes * ~self._same_node
        return remote.reshape(*self.bytes.shape[:-2], nodes, size, nodes, size).sum((-3, -1))

    def _total(self, where: Bool[np.ndarray, "G G"]) -> Int[np.ndarray, "*B"]:
        # a sum over everything is a numpy scalar, which is no array
        return np.asarray((self.bytes * where).sum((-2, -1)))


def per_expert(
    source: Integer[np.ndarray, " T"], device: Integer[np.ndarray, "T K"], topology: Topology
) -> Int[np.ndarray, "G G"]:
    """Rows sent when each choice gets its own copy."""
    return _count(source[:, None], device, device >= 0, topology)


def per_device(
    source: Integer[np.ndarray, " T"], device: Integer[np.ndarray, "T K"], topology: Topology
) -> Int[np.ndarray, "G G"]:
    """Rows sent when each distinct device gets one copy."""
    return _count(source[:, None], device, _first_of_token(device), topology)


def per_node(
    source: Integer[np.ndarray, " T"], device: Integer[np.ndarray, "T K"], topology: Topology
) -> Int[np.ndarray, "G G"]:
    """Rows sent when each distinct remote node gets one copy and its gateway forwards it to each distinct device."""
    return per_node_crossing(source, device, topology) + per_node_forwarding(source, device, topology)


def per_node_crossing(
    source: Integer[np.ndarray, " T"], device: Integer[np.ndarray, "T K"], topology: Topology
) -> Int[np.ndarray, "G G"]:
    """First stage of `per_node`: one row to the gateway of each distinct remote node."""
    # -1 // size = -1: no choice has no node
    node_TK, home_T = device // topology.devices_per_node, source // topology.devices_per_node
    crosses_TK = _first_of_token(node_TK) & (node_TK != home_T[:, None])
    return _count(source[:, None], _gateway(source, device, topology), crosses_TK, topology)


def per_node_forwarding(
    source: Integer[np.ndarray, " T"], device: Integer[np.ndarray, "T K"], topology: Topology
) -> Int[np.ndarray, "G G"]:
    """Second stage of `per_node`: one row from each gateway to each distinct device of its node."""
    return _count(_gateway(source, device, topology), device, _first_of_token(device), topology)


ACCOUNTINGS: tuple[Accounting, ...] = (per_expert, per_device, per_node)
# in their order: the second begins when the first has ended
PER_NODE_STAGES: tuple[Accounting, ...] = (per_node_crossing, per_node_forwarding)


def dispatch_volume(
    trace: RoutingTrace, placement: Placement, topology: Topology, row_bytes: int, accounting: Accounting
) -> CommVolume:
    """Bytes that dispatch sends for every sampled step and layer, batch axes (S, L).

    A choice of -1 sends nothing; of an expert's replicas a token takes the nearest (`nearest_replica`).

    Args:
        row_bytes: bytes of one token's row, hidden width x bytes of an element.

    Raises:
        ValueError: trace, placement and topology differ in layers, experts or devices, or a token starts on a device
            that the topology does not have.
    """
    _check_agree(trace, placement, topology)
    rows = np.zeros((*trace.expert_indices.shape[:2], topology.num_devices, topology.num_devices), np.int64)
    replicas = [nearest_replica(holds_GE, topology) for holds_GE in placement.holds]
    for step, layer in np.ndindex(rows.shape[:2]):
        device_TK = replicas[layer][trace.source_device[:, None], trace.expert_indices[step, layer]]
        rows[step, layer] = accounting(trace.source_device, device_TK, topology)
    return CommVolume(rows * row_bytes, topology)


def nearest_replica(holds_GE: Bool[np.ndarray, "G E"], topology: Topology) -> Int[np.ndarray, "G E1"]:
    """Device to which a token goes for an expert: its own, else one of its node, else any; the lowest of several.

    From (G, E), who holds what (one layer of `Placement.holds`), follows (G, E + 1), by source device and expert; the
    last column, which a choice of -1 finds, is -1.
    """
    node_G = topology.node_of_device
    distance_GG = (node_G[:, None] != node_G) + (~np.eye(len(node_G), dtype=bool)).astype(np.int8)
    # argmin takes the first, so the lowest-numbered, of equals
    distance_GGE = np.where(holds_GE, distance_GG[:, :, None], 3)
    return np.pad(distance_GGE.argmin(1), ((0, 0), (0, 1)), constant_values=-1)


def remote_copies(
    trace: RoutingTrace, placement: Placement, topology: Topology, accounting: Accounting
) -> Float[np.ndarray, "S L"]:
    """Rows between two devices that dispatch sends for a token on average; a forwarded row is one more."""
    rows = dispatch_volume(trace, placement, topology, 1, accounting)
    return (rows.intra_node + rows.inter_node) / len(trace.source_device)


def distinct_devices(trace: RoutingTrace, placement: Placement) -> Float[np.ndarray, "S L"]:
    """C_T (Luo et al., 2025, arXiv 2505.13345): distinct devices that hold a token's experts, mean over tokens.

    The token's own device counts like any other, so C_T does not depend on where tokens start.

    Raises:
        ValueError: layers or experts differ, or an expert has replicas.
    """
    _check_layers_and_experts(trace, placement)
    # column E stands for the absent choices (-1)
    device_LE = np.pad(placement.device_of_expert, ((0, 0), (0, 1)), constant_values=-1)
    mean = np.zeros(trace.expert_indices.shape[:2])
    for step, layer in np.ndindex(mean.shape):
        device_TK = device_LE[layer][trace.expert_indices[step, layer]]
        mean[step, layer] = _first_of_token(device_TK).sum() / len(device_TK)
    return mean


class DispatchLayout(NamedTuple):
    """What a batch's dispatch sends where, under the names of DeepEP's `get_dispatch_layout` (rank = device).

    Attributes:
        num_tokens_per_rank: (G,) tokens that need a device.
        num_tokens_per_rdma_rank: (N,) tokens that need a node.
        num_tokens_per_expert: (E,) tokens that chose an expert.
        is_token_in_rank: (T, G) whether a token needs a device.
    """

    num_tokens_per_rank: Int[np.ndarray, " G"]
    num_tokens_per_rdma_rank: Int[np.ndarray, " N"]
    num_tokens_per_expert: Int[np.ndarray, " E"]
    is_token_in_rank: Bool[np.ndarray, "T G"]


def dispatch_layout(
    expert_indices: Integer[np.ndarray, "T K"], device_of_expert: Integer[np.ndarray, " E"], topology: Topology
) -> DispatchLayout:
    """The layout of one layer's batch; a choice of -1 is left out."""
    device_TK = np.append(device_of_expert, -1)[expert_indices]
    # column G collects the absent choices (-1) and is cut off again
    needs = np.zeros((len(expert_indices), topology.num_devices + 1), bool)
    np.put_along_axis(needs, device_TK % (topology.num_devices + 1), True, axis=1)
    needs_TG = needs[:, :-1]
    needs_TN = needs_TG.reshape(-1, topology.nodes, topology.devices_per_node).any(-1)
    chosen = expert_indices[expert_indices >= 0]
    per_expert = np.bincount(chosen, minlength=len(device_of_expert))
    return DispatchLayout(needs_TG.sum(0), needs_TN.sum(0), per_expert, needs_TG)


def _gateway(source_T: np.ndarray, device_TK: np.ndarray, topology: Topology) -> Integer[np.ndarray, "T K"]:
    # within the own node this is the source itself, so there it forwards to each device directly
    size = topology.devices_per_node
    return device_TK // size * size + source_T[:, None] % size


def _count(from_TK: np.ndarray, to_TK: np.ndarray, sent_TK: np.ndarray, topology: Topology) -> Int[np.ndarray, "G G"]:
    """Rows by (from, to), of the choices for which a row is sent."""
    num_devices = topology.num_devices
    pair = np.broadcast_to(from_TK, to_TK.shape)[sent_TK].astype(np.intp) * num_devices + to_TK[sent_TK]
    return np.bincount(pair, minlength=num_devices**2).reshape(num_devices, num_devices)


def _first_of_token(place_TK: Integer[np.ndarray, "T K"]) -> Bool[np.ndarray, "T K"]:
    """Whether a choice is the first of its token at that place; no place (-1) is never."""
    # choice by choice over all tokens: K is small, and rows of T are what numpy compares fast
    place_KT = np.ascontiguousarray(place_TK.T)
    first_KT = place_KT >= 0
    for k in range(1, len(place_KT)):
        for earlier_T in place_KT[:k]:
            first_KT[k] &= place_KT[k] != earlier_T
    return first_KT.T


def _check_layers_and_experts(trace: RoutingTrace, placement: Placement) -> None:
    traced = (trace.expert_indices.shape[1], trace.num_experts)
    placed = (placement.num_layers, placement.num_experts)
    if traced != placed:
        raise ValueError(f"the trace has (L, E) = {traced}, the placement {placed}")


def _check_agree(trace: RoutingTrace, placement: Placement, topology: Topology) -> None:
    _check_layers_and_experts(trace, placement)
    num_devices = topology.num_devices
    if placement.num_devices != num_devices:
        raise ValueError(f"the placement has {placement.num_devices} devices, the topology {num_devices}")
    if trace.source_device.size and not 0 <= trace.source_device.min() <= trace.source_device.max() < num_devices:
        first, last = trace.source_device.min(), trace.source_device.max()
        raise ValueError(f"tokens start on devices {first}..{last}, the topology has devices 0..{num_devices - 1}")
