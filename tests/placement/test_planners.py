"""The two simplest planners, against exact answers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from placement.balance import device_load, lower_bound, max_over_mean
from placement.contiguous import contiguous
from placement.lpt import lpt
from placement.topology import Topology

PLANNERS = pytest.mark.parametrize("planner", [contiguous, lpt])


def cluster(num_devices: int) -> Topology:
    return Topology(1, num_devices, 1.0, 1.0, 0.0, 0.0)


def imbalance(load: np.ndarray, planner, num_devices: int, slots: int) -> np.ndarray:
    return max_over_mean(device_load(load, planner(load, cluster(num_devices), slots_per_device=slots)))


def optimum(load_E: np.ndarray, num_devices: int, slots: int) -> float:
    """The least max over mean, by trying everything."""
    assignments = np.array(list(product(range(num_devices), repeat=len(load_E))))
    on_device = assignments[..., None] == np.arange(num_devices)
    fits = (on_device.sum(1) <= slots).all(-1)
    return float((load_E @ on_device[fits]).max(-1).min() * num_devices / load_E.sum())


def slow_lpt(load_E: np.ndarray, num_devices: int, slots: int) -> list[set[int]]:
    held: list[set[int]] = [set() for _ in range(num_devices)]
    for expert in sorted(range(len(load_E)), key=lambda expert: (-load_E[expert], expert)):
        open_devices = [device for device in range(num_devices) if len(held[device]) < slots]
        held[min(open_devices, key=lambda device: sum(load_E[e] for e in held[device]))].add(expert)
    return held


whole_loads = hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.just(7)), elements=st.integers(1, 50))


@settings(max_examples=40)
@given(whole_loads, st.sampled_from([(2, 4), (3, 3), (2, 7), (3, 7)]))
def test_lpt_keeps_between_the_optimum_and_its_guarantee(load, shape):
    num_devices, slots = shape
    best = np.array([optimum(row, num_devices, slots) for row in load])
    found = imbalance(load, lpt, num_devices, slots)
    assert (lower_bound(load, num_devices) <= best + 1e-9).all()
    assert (best <= found + 1e-9).all()
    if slots == 7:
        # Graham's bound holds where slots do not limit
        assert (found <= best * (4 / 3 - 1 / (3 * num_devices)) + 1e-9).all()


@settings(max_examples=60)
@given(whole_loads, st.sampled_from([(2, 4), (3, 3), (7, 1), (3, 5)]))
def test_lpt_equals_the_obvious_loop(load, shape):
    placement = lpt(load, cluster(shape[0]), slots_per_device=shape[1])
    for slots_GC, row in zip(placement.slots, load, strict=True):
        assert [set(held[held >= 0].tolist()) for held in slots_GC] == slow_lpt(row, *shape)


def test_golden_plans():
    load = np.array([[9.0, 1.0, 8.0, 2.0, 3.0, 7.0]])
    assert contiguous(load, cluster(2), slots_per_device=3).slots.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    # 9 | 8, then 7 to the lighter, 3 to the other, 2 to the lighter, 1 where a slot is left
    assert lpt(load, cluster(2), slots_per_device=3).slots.tolist() == [[[0, 4, 3], [2, 5, 1]]]


def test_lpt_of_several_loads_plans_for_their_mean():
    loads = np.random.default_rng(0).random((5, 3, 16))
    together = lpt(loads, cluster(4), slots_per_device=4)
    np.testing.assert_array_equal(together.slots, lpt(loads.mean(0), cluster(4), slots_per_device=4).slots)
    assert contiguous(loads, cluster(4), slots_per_device=4).num_layers == 3


def test_lpt_takes_most_of_the_excess_of_contiguous_under_skew():
    load = np.random.default_rng(0).permuted(1.0 / np.arange(1, 65)[None].repeat(8, 0) ** 0.4, axis=1)
    excess = {planner: imbalance(load, planner, 8, 8) - lower_bound(load, 8) for planner in (lpt, contiguous)}
    assert (excess[lpt] < 0.5 * excess[contiguous]).all()


def test_contiguous_spreads_what_does_not_divide():
    placement = contiguous(np.ones((1, 10)), cluster(4), slots_per_device=3)
    assert placement.device_of_expert.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, 3]]


@PLANNERS
def test_shapes_that_cannot_be_are_refused(planner):
    with pytest.raises(ValueError, match="8 devices for 4 experts"):
        planner(np.ones((1, 4)), cluster(8), slots_per_device=1)
    with pytest.raises(ValueError, match=r"9 experts do not fit 4 devices x 2 slots = 8"):
        planner(np.ones((1, 9)), cluster(4), slots_per_device=2)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_lpt_refuses_loads_without_meaning(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        lpt(np.array([[1.0, bad]]), cluster(2), slots_per_device=1)
