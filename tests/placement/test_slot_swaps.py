"""Slot swaps and packing: against every swap there is, and never below what cannot be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.packing import count_replicas, fill, spread_doubles
from placement.slot_swaps import SlotSwaps, even_out
from placement.topology import Placement, Topology

SETTINGS = settings(max_examples=40)
SHAPES = st.sampled_from([(2, 1, 2), (1, 4, 3), (2, 2, 4), (3, 2, 3)])


def case(seed: int, shape: tuple[int, int, int], num_loads: int = 1) -> tuple[Topology, np.ndarray, np.ndarray]:
    """A cluster, slots that hold 5 experts with replicas, and skewed shares (J, 5)."""
    rng, (nodes, size, slots) = np.random.default_rng(seed), shape
    topology = Topology(nodes, size, 1.0, 1.0, 0.0, 0.0)
    load_JE = rng.pareto(1.0, (num_loads, 5)) + 0.01
    share_JE = load_JE * topology.num_devices / load_JE.sum(1, keepdims=True)
    num_slots = max(5, topology.num_devices * slots)
    slots_per_device = -(-num_slots // topology.num_devices)
    replicas_E = count_replicas(share_JE[0], topology.num_devices * slots_per_device, topology.num_devices)
    empty = np.full((topology.num_devices, slots_per_device), -1)
    return topology, fill(empty, replicas_E, share_JE[0], topology), share_JE


def loads(slots_GC: np.ndarray, share_JE: np.ndarray) -> np.ndarray:
    """Device loads (J, G), slot by slot."""
    load_JG = np.zeros((len(share_JE), len(slots_GC)))
    for device, held in enumerate(slots_GC):
        for expert in held[held >= 0]:
            load_JG[:, device] += share_JE[:, expert] / (slots_GC == expert).sum()
    return load_JG


def swapped(slots_GC: np.ndarray) -> list[np.ndarray]:
    """The slots after every swap that leaves no expert twice on a device."""
    found = []
    for first, second in np.ndindex(slots_GC.size, slots_GC.size):
        one = slots_GC.copy()
        flat = one.reshape(-1)
        flat[[first, second]] = flat[[second, first]]
        if all(len(set(held[held >= 0].tolist())) == (held >= 0).sum() for held in one):
            found.append(one)
    return found


@SETTINGS
@given(st.integers(0, 10**6), SHAPES, st.integers(1, 3))
def test_no_swap_improves_what_the_search_leaves(seed, shape, num_loads):
    _, slots_GC, share_JE = case(seed, shape, num_loads)
    search = SlotSwaps(slots_GC, share_JE)
    for _ in search.descend():
        np.testing.assert_allclose(search.load, loads(search.slots, share_JE), atol=1e-12)
    found = search.slots
    assert sorted(found.reshape(-1)) == sorted(slots_GC.reshape(-1))
    squares = [np.square(loads(each, share_JE)).sum() for each in swapped(found)]
    assert np.square(loads(found, share_JE)).sum() <= min(squares) + 1e-9
    if num_loads == 1:
        # then no swap lowers the maximum either, but for gains whose squares are too small, and none raised it
        assert search.worst <= min(loads(each, share_JE).max() for each in swapped(found)) + 2e-5
        assert search.worst <= loads(slots_GC, share_JE).max() + 1e-12


@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_the_worst_of_several_loads_cannot_be_swapped_away(seed, shape):
    _, slots_GC, share_JE = case(seed, shape, 3)
    search = SlotSwaps(slots_GC, share_JE)
    search.descend_worst()
    assert search.worst == pytest.approx(loads(search.slots, share_JE).max())
    assert search.worst <= loads(slots_GC, share_JE).max() + 1e-12
    # a swap can only help that leaves fewer devices at the worst: with one such device, none does
    worst_G = search.load.max(0)
    if (worst_G > search.worst - 1e-9).sum() == 1:
        assert search.worst <= min(loads(each, share_JE).max() for each in swapped(search.slots)) + 1e-9


def test_a_scale_changes_no_swap():
    _, slots_GC, share_JE = case(3, (2, 2, 4))
    np.testing.assert_array_equal(even_out(slots_GC, share_JE), even_out(slots_GC, share_JE * 4.0))


def test_the_next_replica_goes_to_the_most_load_a_replica():
    # 12, 8, 3: 6 + 6, 4 + 4, then 4 + 4 + 4 before 8's third
    assert count_replicas(np.array([12.0, 8.0, 3.0]), 6, 4).tolist() == [3, 2, 1]
    # no more than devices; the rest stays empty
    assert count_replicas(np.array([12.0, 8.0, 3.0]), 9, 2).tolist() == [2, 2, 2]
    # equal loads take turns
    assert count_replicas(np.zeros(4), 8, 4).tolist() == [2, 2, 2, 2]


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([(1, 4, 3), (2, 2, 4), (3, 2, 3)]))
def test_replicas_keep_the_heaviest_copy_as_light_as_can_be(seed, shape):
    _, _, share_JE = case(seed, shape)
    num_devices = shape[0] * shape[1]
    num_slots = num_devices * shape[2]
    replicas_E = count_replicas(share_JE[0], num_slots, num_devices)
    heaviest = (share_JE[0] / replicas_E).max()
    # any lighter heaviest copy takes more slots than there are, or more copies of an expert than devices
    needed_E = np.floor(share_JE[0] / heaviest * (1 + 1e-12)) + 1
    assert needed_E.sum() > num_slots or needed_E.max() > num_devices


@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_filled_slots_hold_every_replica_once_a_device(seed, shape):
    topology, slots_GC, share_JE = case(seed, shape)
    replicas_E = count_replicas(share_JE[0], slots_GC.size, topology.num_devices)
    assert Placement(slots_GC[None]).num_replicas.tolist() == [replicas_E.tolist()]


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([(1, 4, 3), (2, 2, 4), (2, 3, 5)]))
def test_doubles_are_repaired_and_nothing_else_is(seed, shape):
    rng, (nodes, size, slots) = np.random.default_rng(seed), shape
    topology, num_slots = Topology(nodes, size, 1.0, 1.0, 0.0, 0.0), nodes * size * slots
    slots_GC = rng.permutation(np.append(np.arange(8), rng.integers(8, size=num_slots - 8))).reshape(-1, slots)
    load_E = rng.pareto(1.0, 8) + 0.01
    repaired = spread_doubles(slots_GC, load_E, topology)
    plan = Placement(repaired[None])
    assert plan.num_experts == 8
    copies_E = np.bincount(slots_GC.reshape(-1), minlength=8)
    if copies_E.max() <= topology.num_devices and (repaired >= 0).all():
        # swaps suffice for most, and they keep the number of copies
        assert plan.num_replicas.sum() == num_slots
    np.testing.assert_array_equal(spread_doubles(repaired, load_E, topology), repaired)


def test_a_double_goes_to_its_own_node_if_it_can():
    topology = Topology(2, 2, 1.0, 1.0, 0.0, 0.0)
    slots_GC = np.array([[0, 0, 3], [1, 2, 4], [5, 6, 7], [8, 9, -1]])
    load_E = np.array([4.0, 1.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    repaired = spread_doubles(slots_GC, load_E, topology)
    # 2 + 2 + 2 and 1 + 4 + 1: swapped with expert 1 or 4 that leaves 5 and 7, with expert 2 it leaves 8
    assert [set(held) for held in repaired[:2].tolist()] == [{0, 1, 3}, {0, 2, 4}]
    np.testing.assert_array_equal(repaired[2:], slots_GC[2:])


def test_a_copy_without_a_device_makes_room():
    # three copies of expert 0 on two devices: the third one's slot goes to what its device lacks and has most load
    topology = Topology(1, 2, 1.0, 1.0, 0.0, 0.0)
    repaired = spread_doubles(np.array([[0, 0, 1], [0, 2, 3]]), np.array([9.0, 1.0, 2.0, 5.0]), topology)
    assert sorted(repaired[0].tolist()) == [0, 1, 3]
    # and stays empty where nothing is left
    repaired = spread_doubles(np.array([[0, 0, 1], [0, 1, -1]]), np.array([9.0, 1.0]), topology)
    assert sorted(repaired[0].tolist()) == [-1, 0, 1]
