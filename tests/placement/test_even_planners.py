"""Planners of even devices: lpt_swaps, replicate_swaps and robust, against LPT, proven optima and one another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load, device_share, max_over_mean
from placement.eplb import eplb
from placement.exact import least_maximum
from placement.lpt import lpt
from placement.lpt_swaps import lpt_swaps
from placement.movement import moved_slots
from placement.replicate_swaps import replicate_swaps
from placement.robust import robust
from placement.topology import Placement, Topology

PLANNERS = (lpt_swaps, replicate_swaps, robust)
EACH = pytest.mark.parametrize("planner", PLANNERS)
SETTINGS = settings(max_examples=20)
SHAPES = st.sampled_from([(8, 2, 4), (8, 4, 2), (8, 4, 3), (10, 3, 4), (9, 3, 5), (12, 4, 4)])


def cluster(num_devices: int, nodes: int = 1) -> Topology:
    return Topology(nodes, num_devices // nodes, 1.0, 1.0, 0.0, 0.0)


def worst(load: np.ndarray, plan: Placement) -> np.ndarray:
    return max_over_mean(device_load(load, plan))


def skewed(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).pareto(1.5, shape) + 0.01


def zipf(seed: int, num_layers: int, num_experts: int, exponent: float = 1.0) -> np.ndarray:
    weight = 1.0 / np.arange(1, num_experts + 1) ** exponent
    return np.random.default_rng(seed).permuted(np.tile(weight, (num_layers, 1)), axis=1)


@EACH
@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_no_plan_is_less_even_than_that_of_lpt(planner, seed, shape):
    num_experts, num_devices, slots = shape
    load, topology = skewed(seed, 2, num_experts), cluster(num_devices)
    plan = planner(load, topology, slots_per_device=slots)
    assert plan.slots.shape == (2, num_devices, slots)
    assert plan.num_experts == num_experts
    assert (worst(load, plan) <= worst(load, lpt(load, topology, slots_per_device=slots)) + 1e-9).all()


@EACH
@SETTINGS
@given(st.integers(0, 10**6), SHAPES)
def test_names_of_experts_and_units_of_load_do_not_matter(planner, seed, shape):
    num_experts, num_devices, slots = shape
    load, topology = skewed(seed, 1, num_experts), cluster(num_devices)
    renamed = 8.0 * load[:, np.random.default_rng(seed).permutation(num_experts)]
    found = [worst(each, planner(each, topology, slots_per_device=slots)) for each in (load, renamed)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


@pytest.mark.parametrize("shape", [(9, 3, 3), (12, 4, 3), (12, 3, 5)])
def test_swaps_come_close_to_the_proven_optimum(shape):
    num_experts, num_devices, slots = shape
    gaps = []
    for seed in range(3):
        load = np.random.default_rng(seed).integers(20, 100, (1, num_experts))
        plan = lpt_swaps(load, cluster(num_devices), slots_per_device=slots)
        gaps.append(worst(load, plan).item() / least_maximum(load[0], num_devices, slots).cost - 1)
    assert min(gaps) > -1e-9
    assert np.mean(gaps) < 0.015


def test_what_lpt_cannot_undo_swaps_can():
    # LPT: 3 + 2 + 2 = 7 beside 3 + 2; swapping a 3 for two 2s takes an empty slot
    load = np.array([[3.0, 3.0, 2.0, 2.0, 2.0]])
    assert worst(load, lpt(load, cluster(2), slots_per_device=3)).tolist() == pytest.approx([7 / 6])
    load = np.array([[8.0, 7.0, 6.0, 5.0, 4.0, 2.0]])
    assert worst(load, lpt(load, cluster(2), slots_per_device=3)).item() == pytest.approx(17 / 16)
    assert worst(load, lpt_swaps(load, cluster(2), slots_per_device=3)).item() == pytest.approx(1.0)


def test_replicas_take_what_one_device_cannot():
    load = np.array([[9.0, 1.0, 1.0, 1.0]])
    assert worst(load, lpt_swaps(load, cluster(2), slots_per_device=3)).item() == pytest.approx(9 / 6)
    plan = replicate_swaps(load, cluster(2), slots_per_device=3)
    # 4.5 + 0.5 + 1 on both
    assert plan.num_replicas[0, 0] == 2
    assert worst(load, plan).item() == pytest.approx(1.0)
    # 3 | 2 + 1 is even, and nothing with 1.5 on both is
    load = np.array([[3.0, 2.0, 1.0]])
    assert worst(load, replicate_swaps(load, cluster(2), slots_per_device=2)).item() == 1.0


def test_replicas_let_devices_outnumber_experts():
    load = np.array([[5.0, 1.0]])
    plan = replicate_swaps(load, cluster(6), slots_per_device=1)
    assert plan.num_replicas.tolist() == [[5, 1]]
    assert worst(load, plan).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="6 devices for 2 experts"):
        lpt_swaps(load, cluster(6), slots_per_device=1)


def test_256_experts_on_64_devices_of_5_slots_are_even_to_a_thousandth():
    load, topology = zipf(0, 2, 256), cluster(64, nodes=8)
    plan = replicate_swaps(load, topology, slots_per_device=5)
    assert (plan.slots >= 0).all()
    assert (worst(load, plan) <= 1.001).all()
    assert (worst(load, eplb(load, topology, slots_per_device=5)) > 1.01).all()
    again = replicate_swaps(load, topology, slots_per_device=5, current=plan)
    assert moved_slots(plan, again).tolist() == [0, 0]


def test_a_price_on_movement_keeps_the_plan_near_the_current_one():
    load, topology = zipf(1, 2, 32), cluster(8)
    current = replicate_swaps(load, topology, slots_per_device=5)
    drifted = load * np.exp(0.3 * np.random.default_rng(2).normal(size=load.shape))
    plans = [
        replicate_swaps(drifted, topology, slots_per_device=5, current=current, movement_weight=weight)
        for weight in (0.0, 0.05, 0.5, 100.0)
    ]
    moved = [moved_slots(current, plan).sum() for plan in plans]
    # of the same candidates a dearer price never picks one that moves more; the dearest keeps everything
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[1] > moved[-1] == 0
    for layer in range(2):
        costs = [worst(drifted, plan)[layer] + 0.05 * moved_slots(current, plan)[layer] / 40 for plan in plans]
        assert costs[1] == min(costs)


def test_replicas_grow_from_a_plan_with_fewer_slots():
    load, topology = zipf(1, 1, 32), cluster(8)
    current = lpt_swaps(load, topology, slots_per_device=4)
    grown = replicate_swaps(load, topology, slots_per_device=5, current=current, movement_weight=1.0)
    assert worst(load, grown).item() < 0.8 * worst(load, current).item()
    assert moved_slots(current, grown).sum() <= 12
    with pytest.raises(ValueError, match="has 5 slots a device, more than 4"):
        replicate_swaps(load, topology, slots_per_device=4, current=grown)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([(8, 4, 2), (8, 4, 3), (10, 3, 4)]), st.integers(2, 4))
def test_robust_has_the_best_worst_case(seed, shape, num_loads):
    num_experts, num_devices, slots = shape
    load, topology = skewed(seed, num_loads, 1, num_experts), cluster(num_devices)
    load = device_share(load, num_devices)
    plan = robust(load, topology, slots_per_device=slots)
    for planner in (lpt, lpt_swaps, replicate_swaps):
        other = planner(load, topology, slots_per_device=slots)
        assert worst(load, plan).max() <= worst(load, other).max() + 1e-9
    repeated = robust(np.concatenate([load, load]), topology, slots_per_device=slots)
    np.testing.assert_allclose(worst(load, repeated).max(), worst(load, plan).max(), rtol=1e-9)


def test_robust_spreads_experts_that_are_hot_in_turn():
    # on average all are alike; under each load two are hot
    load = np.array([[[9.0, 9.0, 1.0, 1.0]], [[1.0, 1.0, 9.0, 9.0]]])
    plan = robust(load, cluster(2), slots_per_device=2)
    assert worst(load, plan).max() == pytest.approx(1.0)
    together = Placement(np.array([[[0, 1], [2, 3]]]))
    assert worst(load.mean(0), together).item() == pytest.approx(1.0)
    assert worst(load, together).max() == pytest.approx(1.8)


@EACH
def test_devices_are_named_after_the_current_plan(planner):
    load, topology = zipf(0, 1, 16), cluster(4, nodes=2)
    plan = planner(load, topology, slots_per_device=5)
    renamed = Placement(plan.slots[:, [3, 2, 0, 1]])
    again = planner(load, topology, slots_per_device=5, current=renamed)
    assert moved_slots(renamed, again).tolist() == [0]
    with pytest.raises(ValueError, match=r"\(L, G, E\) = \(1, 4, 16\), the new one \(2, 4, 16\)"):
        planner(zipf(0, 2, 16), topology, slots_per_device=5, current=plan)


@EACH
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_loads_without_meaning_are_refused(planner, bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        planner(np.array([[1.0, bad]]), cluster(2), slots_per_device=1)


def test_a_price_without_meaning_is_refused():
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"movement_weight must be .* got {bad}"):
            replicate_swaps(np.ones((1, 4)), cluster(2), slots_per_device=2, movement_weight=bad)
