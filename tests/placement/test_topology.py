"""Clusters and placements: what they know and what they refuse."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from placement.topology import Placement, Topology

VALUES = {
    "nodes": 2,
    "devices_per_node": 4,
    "intra_node_bandwidth": 450e9,
    "inter_node_bandwidth": 200e9,
    "intra_node_latency": 3.4e-6,
    "inter_node_latency": 14e-6,
}
TOPOLOGIES = sorted((Path(__file__).parents[2] / "conf/topology").glob("*.yaml"))


def test_devices_are_numbered_node_by_node():
    topology = Topology(**VALUES)
    assert topology.num_devices == 8
    assert topology.node_of_device.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", 0),
        ("devices_per_node", -1),
        ("intra_node_bandwidth", 0.0),
        ("inter_node_bandwidth", float("nan")),
        ("intra_node_latency", -1e-6),
        ("inter_node_latency", float("inf")),
    ],
)
def test_an_impossible_cluster_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Topology(**{**VALUES, name: value})


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_configured_topology_says_what_it_is(path):
    assert path.read_text().startswith("# ")
    topology = instantiate(OmegaConf.load(path))
    assert isinstance(topology, Topology)
    assert topology.inter_node_bandwidth < topology.intra_node_bandwidth * topology.devices_per_node


def test_a_placement_without_replicas_knows_each_device():
    placement = Placement(np.array([[[3, 0], [1, 2]], [[0, 1], [2, 3]]]))
    assert (placement.num_layers, placement.num_devices, placement.slots_per_device) == (2, 2, 2)
    assert placement.num_experts == 4
    assert placement.device_of_expert.tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert (placement.num_replicas == 1).all()


def test_replicas_are_counted_and_empty_slots_are_not():
    placement = Placement(np.array([[[0, 1, -1], [2, 0, -1]]]))
    assert placement.num_replicas.tolist() == [[2, 1, 1]]
    assert placement.holds.tolist() == [[[True, True, False], [True, False, True]]]
    with pytest.raises(ValueError, match="layer 0: expert 0 has 2 replicas"):
        _ = placement.device_of_expert


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ([[[0, 1], [3, 1]]], "layer 0: expert 2 of 4 is held by no device"),
        ([[[0, 1], [2, 3]], [[0, 1], [2, 0]]], "layer 1: expert 3 of 4 is held by no device"),
        ([[[0, 1], [2, 2]]], "layer 0: device 1 holds expert 2 twice"),
        ([[[0, -2]]], r"got -2\.\.0"),
        ([[[-1, -1]]], r"got -1\.\.-1"),
        ([[0, 1]], r"got \(1, 2\)"),
        ([[[0.0, 1.0]]], "got float64"),
    ],
)
def test_an_impossible_placement_is_refused(slots, reason, monkeypatch):
    # the tests' shape checks would speak before the error that a user sees
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=reason):
        Placement(np.array(slots))
