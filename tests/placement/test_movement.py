"""Movement: names against every naming there is, bytes against a walk over slots."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load
from placement.movement import migration, moved_slots, relabel
from placement.topology import Placement, Topology
from placement.volume import PER_NODE_STAGES, dispatch_volume, nearest_replica

SETTINGS = settings(max_examples=40)
SHAPES = st.sampled_from([(1, 4), (2, 2), (4, 1), (2, 1)])


def cluster(nodes: int, size: int) -> Topology:
    return Topology(nodes, size, 1.0, 1.0, 0.0, 0.0)


def random_placement(rng: np.random.Generator, num_devices: int, num_copies: int = 2) -> Placement:
    """Eight experts, some of them `num_copies` times, and a few empty slots."""
    copies = np.concatenate([np.arange(8), np.arange(4 * (num_copies - 1)), np.full(num_devices, -1)])
    slots = -(-len(copies) // num_devices)
    while True:
        held = np.full(num_devices * slots, -1)
        held[: len(copies)] = copies
        slots_GC = rng.permutation(held).reshape(num_devices, slots)
        if all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in slots_GC):
            return Placement(slots_GC[None])


def namings(nodes: int, size: int) -> list[np.ndarray]:
    """Every new numbering of devices that keeps those of a node together."""
    found = []
    for old_N in permutations(range(nodes)):
        for within_ND in product(permutations(range(size)), repeat=nodes):
            found.append((np.array(old_N)[:, None] * size + np.array(within_ND)).reshape(-1))
    return found


@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_no_naming_moves_less_or_as_much_but_over_more_nodes(seed, shape):
    rng, topology = np.random.default_rng(seed), cluster(*shape)
    new, current = (random_placement(rng, topology.num_devices) for _ in range(2))
    found = relabel(new, current, topology)

    def effort(placement: Placement) -> tuple[int, int]:
        return int(moved_slots(current, placement).sum()), int(
            migration(current, placement, topology, 1).inter_node.sum()
        )

    efforts = []
    for names in namings(*shape):
        slots = np.empty_like(new.slots)
        slots[:, names] = new.slots
        efforts.append(effort(Placement(slots)))
    assert effort(found)[0] == min(efforts)[0]
    if min(efforts)[0] == 0:
        assert effort(found) == (0, 0)


@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_a_new_name_changes_no_cost(make_trace, seed, shape):
    rng, topology = np.random.default_rng(seed), cluster(*shape)
    new, current = (random_placement(rng, topology.num_devices, num_copies=1) for _ in range(2))
    found = relabel(new, current, topology)
    load = rng.random((1, 8))
    np.testing.assert_allclose(np.sort(device_load(load, found)), np.sort(device_load(load, new)))
    # tokens that start evenly on all devices: as many rows between nodes, and as many at the busiest one
    chosen = np.repeat(rng.integers(8, size=(1, 1, 20, 3)), topology.num_devices, axis=2).astype(np.int16)
    trace = make_trace(chosen, 8, np.tile(np.arange(topology.num_devices), 20))
    for stage in PER_NODE_STAGES:
        rows = [dispatch_volume(trace, each, topology, 1, stage) for each in (found, new)]
        assert rows[0].inter_node == rows[1].inter_node
        assert rows[0].busiest_node_ingress == rows[1].busiest_node_ingress


def test_names_within_a_node_and_of_nodes():
    topology = cluster(2, 2)
    current = Placement(np.array([[[0, 1], [2, 3], [4, 5], [6, 7]]]))
    shuffled = Placement(current.slots[:, [3, 2, 0, 1]])
    np.testing.assert_array_equal(relabel(shuffled, current, topology).slots, current.slots)
    # across nodes devices cannot trade names one by one: of 0, 4 | 1, 5 each node keeps one
    mixed = Placement(np.array([[[0, 1], [4, 5], [2, 3], [6, 7]]]))
    assert moved_slots(current, relabel(mixed, current, topology)).tolist() == [4]
    assert moved_slots(current, relabel(mixed, current, cluster(1, 4))).tolist() == [0]


def test_of_equal_names_nodes_that_hold_the_expert_are_preferred():
    # nothing stays whatever the names are; experts 0 and 1 can stay on their node
    topology = cluster(2, 2)
    current = Placement(np.array([[[0, 2], [1, 3], [4, 6], [5, 7]]]))
    new = Placement(np.array([[[4, 5], [6, 7], [0, 1], [2, 3]]]))
    found = relabel(new, current, topology)
    assert moved_slots(current, found).tolist() == [4]
    assert migration(current, found, topology, 1).inter_node.tolist() == [0]


def test_a_worked_migration():
    # node 0: devices 0 and 1; expert 0 is on devices 1 and 2, and goes to 0 from its own node and to 3 from its own
    topology = cluster(2, 2)
    current = Placement(np.array([[[1, -1], [0, 2], [0, 3], [4, -1]]]))
    new = Placement(np.array([[[1, 0], [2, 3], [0, 3], [4, 0]]]))
    volume = migration(current, new, topology, 10)
    expected = np.zeros((1, 4, 4), int)
    expected[0, 1, 0] = expected[0, 2, 1] = expected[0, 2, 3] = 10
    np.testing.assert_array_equal(volume.bytes, expected)
    assert (volume.local.item(), volume.intra_node.item(), volume.inter_node.item()) == (0, 20, 10)
    assert moved_slots(current, new).tolist() == [3]


@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_every_moved_expert_comes_from_the_nearest_device_that_has_it(seed, shape):
    rng, topology = np.random.default_rng(seed), cluster(*shape)
    current, new = (random_placement(rng, topology.num_devices) for _ in range(2))
    expected = np.zeros((topology.num_devices, topology.num_devices), int)
    for device, expert in product(range(topology.num_devices), range(8)):
        if new.holds[0, device, expert] and not current.holds[0, device, expert]:
            expected[nearest_replica(current.holds[0], topology)[device, expert], device] += 7
    volume = migration(current, new, topology, 7)
    np.testing.assert_array_equal(volume.bytes[0], expected)
    assert volume.local.item() == 0
    assert volume.bytes.sum() == 7 * moved_slots(current, new).sum()
    assert not migration(current, current, topology, 7).bytes.any()


def test_what_does_not_fit_together_is_refused():
    placement = Placement(np.arange(8).reshape(1, 4, 2))
    with pytest.raises(ValueError, match=r"current placement has \(L, G, E\) = \(2, 4, 8\), the new one \(1, 4, 8\)"):
        moved_slots(Placement(np.tile(placement.slots, (2, 1, 1))), placement)
    with pytest.raises(ValueError, match="the placement has 4 devices, the topology 2"):
        relabel(placement, placement, cluster(1, 2))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        migration(placement, placement, cluster(1, 4), -1)
