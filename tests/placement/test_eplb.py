"""EPLB: the README's worked example, a slow reference, and what the planner around it repairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load, max_over_mean
from placement.eplb import eplb, rebalance_experts
from placement.topology import Placement, Topology

# two layers of 12 experts in 4 groups, 16 slots on 2 nodes of 4 GPUs (github.com/deepseek-ai/EPLB, README.md)
README_WEIGHT = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
README_PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def cluster(nodes: int, size: int) -> Topology:
    return Topology(nodes, size, 1.0, 1.0, 0.0, 0.0)


def slow_global(weight_E: list[float], num_replicas: int, num_gpus: int) -> list[list[int]]:
    """Copies and packing, one at a time."""
    count = [1] * len(weight_E)
    order = list(range(len(weight_E)))
    while len(order) < num_replicas:
        heaviest = max(range(len(weight_E)), key=lambda expert: (weight_E[expert] / count[expert], -expert))
        count[heaviest] += 1
        order.append(heaviest)
    gpus: list[list[int]] = [[] for _ in range(num_gpus)]
    for expert in sorted(order, key=lambda expert: -weight_E[expert] / count[expert]):
        room = [gpu for gpu in gpus if len(gpu) < num_replicas // num_gpus]
        min(room, key=lambda gpu: sum(weight_E[each] / count[each] for each in gpu)).append(expert)
    return gpus


def test_the_worked_example_of_the_readme():
    phy2log, log2phy, logcnt = rebalance_experts(README_WEIGHT, 16, 4, 2, 8)
    assert phy2log.tolist() == README_PHY2LOG
    assert logcnt[0].tolist() == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]
    assert log2phy.shape == (2, 12, 2)
    assert log2phy[0, 5].tolist() == [0, 2]
    assert log2phy[0, 6].tolist() == [1, -1]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(8, 12, 4), (9, 12, 3), (6, 6, 2), (16, 24, 8)]))
def test_the_global_policy_equals_the_obvious_loop(seed, shape):
    num_experts, num_replicas, num_gpus = shape
    # powers of two: the same sums and quotients in any order, for ties too
    weight = np.exp2(np.random.default_rng(seed).integers(0, 8, (2, num_experts)))
    weight *= np.random.default_rng(seed + 1).integers(1, 4, weight.shape)
    phy2log, log2phy, logcnt = rebalance_experts(weight, num_replicas, 1, 1, num_gpus)
    for layer, row in enumerate(weight):
        assert phy2log[layer].reshape(num_gpus, -1).tolist() == slow_global(row.tolist(), num_replicas, num_gpus)
        for expert in range(num_experts):
            slots = log2phy[layer, expert]
            assert sorted(slots[slots >= 0].tolist()) == np.flatnonzero(phy2log[layer] == expert).tolist()
            assert (slots >= 0).sum() == logcnt[layer, expert]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 3))
def test_the_hierarchical_policy_keeps_groups_on_nodes(seed, per_gpu):
    weight = np.random.default_rng(seed).pareto(1.0, (2, 16)) + 0.01
    phy2log, _, logcnt = rebalance_experts(weight, 8 * per_gpu, 4, 2, 8)
    assert (logcnt >= 1).all()
    for row in phy2log:
        groups = [set((node // 4).tolist()) for node in row.reshape(2, -1)]
        assert groups[0].isdisjoint(groups[1])
        assert len(groups[0]) == len(groups[1]) == 2


def test_nodes_that_do_not_divide_the_groups_mean_the_global_policy():
    weight = np.random.default_rng(0).random((1, 12))
    found = [rebalance_experts(weight, 18, groups, nodes, 6)[0] for groups, nodes in ((5, 3), (1, 1), (1, 3))]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 4]), st.integers(2, 4))
def test_the_planner_repairs_doubles_and_leaves_other_plans_alone(seed, num_groups, slots):
    load = np.random.default_rng(seed).pareto(0.7, (3, 8)) + 0.01
    plan = eplb(load, cluster(2, 2), slots_per_device=slots, num_groups=num_groups)
    phy2log, _, _ = rebalance_experts(load, 4 * slots, num_groups, 2, 4)
    for repaired, made in zip(plan.slots, phy2log.reshape(3, 4, slots), strict=True):
        if all(len(set(held)) == slots for held in made.tolist()):
            np.testing.assert_array_equal(repaired, made)
    assert plan.num_experts == 8


def test_a_double_there_is_and_its_repair_costs_little():
    # 256 experts, 64 GPUs, 320 slots, Zipf(1): in one of these layers a GPU gets an expert twice
    weight = 1.0 / np.arange(1, 257)
    load = np.stack([np.random.default_rng(seed).permutation(weight) for seed in range(2)])
    phy2log, _, logcnt = rebalance_experts(load, 320, 1, 8, 64)
    with pytest.raises(ValueError, match="twice"):
        Placement(phy2log.reshape(2, 64, 5))
    share = np.take_along_axis(load / logcnt, phy2log, 1).reshape(2, 64, 5).sum(-1)
    repaired = max_over_mean(device_load(load, eplb(load, cluster(8, 8), slots_per_device=5)))
    assert (repaired < max_over_mean(share) + 0.02).all()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((15, 1, 1, 4), "num_replicas over num_gpus .* got 15 over 4"),
        ((16, 1, 3, 4), "num_gpus over num_nodes .* got 4 over 3"),
        ((16, 5, 1, 4), "experts over num_groups .* got 12 over 5"),
        ((8, 1, 1, 4), "12 experts need as many replicas at least, got 8"),
    ],
)
def test_shapes_that_cannot_be_are_refused(numbers, reason):
    with pytest.raises(ValueError, match=reason):
        rebalance_experts(README_WEIGHT, *numbers)


def test_loads_without_meaning_are_refused():
    with pytest.raises(ValueError, match="finite and not negative"):
        eplb(np.array([[1.0, -1.0]]), cluster(1, 2), slots_per_device=1)
