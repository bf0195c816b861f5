"""Co-location: against the exact optimum, and what its load term buys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load
from placement.colocate import colocate
from placement.exact import least_visits_of_few
from placement.swaps import Grouping, Swaps
from placement.topology import Placement, Topology
from placement.volume import dispatch_volume, distinct_devices, per_node
from traces.routing import ExpertSets


def cluster(num_devices: int, nodes: int = 1) -> Topology:
    return Topology(nodes, num_devices // nodes, 450e9, 100e9, 3.4e-6, 14e-6)


def load_of(trace) -> np.ndarray:
    return np.stack([np.bincount(row[row >= 0], minlength=trace.num_experts) for row in trace.expert_indices[0]])


def plan(trace, topology: Topology, **options) -> Placement:
    slots = -(-trace.num_experts // topology.num_devices)
    return colocate(load_of(trace), topology, slots_per_device=slots, routing=trace.sets(), **options)


def deviation(trace, placement: Placement) -> float:
    load_G = device_load(load_of(trace), placement)[0]
    return float(np.square(load_G / load_G.mean() - 1).mean())


def optimum(trace, num_devices: int, load_weight: float = 0.0) -> float:
    """The least cost of any grouping into sizes that differ by one at most."""
    return least_visits_of_few(trace.sets()[0], load_of(trace)[0], num_devices, load_weight).cost


@pytest.fixture
def clustered(make_trace, make_choices):
    """A trace of one layer with hidden clusters; `top_k` of `num_experts`."""

    def make(seed: int, num_experts: int, top_k: int, num_clusters: int, num_tokens: int = 400, strength: float = 2.0):
        rng = np.random.default_rng(seed)
        hidden = rng.permutation(np.arange(num_experts) % num_clusters)
        return make_trace(make_choices(rng, hidden, num_tokens, top_k, strength)[None, None], num_experts)

    return make


@pytest.mark.parametrize("shape", [(8, 2), (9, 3), (10, 4), (12, 3)])
def test_the_plan_is_never_below_the_optimum_and_nearly_always_at_it(clustered, shape):
    num_experts, num_devices = shape
    gaps = []
    for seed in range(10):
        trace = clustered(seed, num_experts, 2 + seed % 3, num_devices + seed % 2, strength=seed / 3)
        found = distinct_devices(trace, plan(trace, cluster(num_devices))).item()
        gaps.append(found / optimum(trace, num_devices) - 1)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.005
    assert np.isclose(gaps, 0, atol=1e-9).sum() >= 9


def test_the_plan_is_the_optimum_of_sixteen_experts(clustered):
    trace = clustered(1, 16, 3, 4)
    assert distinct_devices(trace, plan(trace, cluster(4))).item() == pytest.approx(optimum(trace, 4), abs=1e-9)


def test_hidden_blocks_are_found(make_trace):
    rng = np.random.default_rng(0)
    block_of = rng.permutation(np.repeat(np.arange(4), 8))
    members = np.stack([np.flatnonzero(block_of == block) for block in range(4)])
    chosen = np.stack([rng.permutation(members[rng.integers(4)])[:3] for _ in range(500)])
    trace = make_trace(chosen[None, None], 32)
    placement = plan(trace, cluster(4))
    assert distinct_devices(trace, placement).item() == 1.0
    assert {frozenset(held) for held in placement.slots[0].tolist()} == {frozenset(held) for held in members.tolist()}


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 5), st.sampled_from([0.0, 3.0]))
def test_the_change_of_every_swap_is_exact_after_any_swaps(seed, top_k, num_groups, load_weight):
    rng = np.random.default_rng(seed)
    num_members = 9
    contains = np.zeros((40, num_members))
    np.put_along_axis(contains, rng.permuted(np.tile(np.arange(num_members), (40, 1)), axis=1)[:, :top_k], 1.0, axis=1)
    share = rng.dirichlet(np.ones(num_members)) * num_groups
    problem = Grouping(contains, rng.dirichlet(np.ones(40)), share, num_groups, load_weight)
    state = Swaps(problem, rng.permutation(np.arange(num_members) % num_groups))
    for _ in range(4):
        change = state.change()
        allowed = np.argwhere(np.isfinite(change))
        for first, second in allowed:
            swapped = state.group.copy()
            swapped[[first, second]] = swapped[[second, first]]
            before, after = (problem.cost(group[:num_members]) for group in (state.group, swapped))
            assert change[first, second] == pytest.approx(after - before, abs=1e-12)
        state.swap(*rng.choice(allowed).tolist())
        assert np.ptp(np.bincount(state.group[:num_members], minlength=num_groups)) <= 1


def test_the_searched_cost_is_the_measured_one(clustered):
    trace = clustered(0, 32, 4, 6)
    placement = plan(trace, cluster(8))
    sets = trace.sets()[0]
    contains = (sets.experts[:, :, None] == np.arange(32)).any(1).astype(float)
    problem = Grouping(contains, sets.count / sets.count.sum(), np.ones(32) / 4, 8, 0.0)
    assert problem.cost(placement.device_of_expert[0]) == pytest.approx(distinct_devices(trace, placement).item())


@pytest.mark.parametrize("seed", range(4))
def test_the_load_term_buys_balance_with_devices(clustered, seed):
    trace = clustered(seed, 12, 3, 4)
    plain, even = (plan(trace, cluster(3), load_weight=weight) for weight in (0.0, 5.0))
    assert deviation(trace, even) < deviation(trace, plain)
    devices = distinct_devices(trace, even).item()
    assert devices >= optimum(trace, 3) - 1e-9
    cost, least = devices + 5.0 * deviation(trace, even), optimum(trace, 3, load_weight=5.0)
    assert least - 1e-9 <= cost <= least * 1.005


def test_renamed_experts_cost_the_same(clustered, make_trace):
    trace = clustered(1, 12, 3, 4)
    renamed = make_trace(np.random.default_rng(0).permutation(12)[trace.expert_indices], 12)
    found = [distinct_devices(each, plan(each, cluster(4))).item() for each in (trace, renamed)]
    assert found[0] == found[1]


def test_more_starts_never_cost_more(clustered):
    trace = clustered(2, 32, 4, 10, strength=1.0)
    found = [distinct_devices(trace, plan(trace, cluster(8), starts=starts)).item() for starts in (1, 4, 16)]
    assert found == sorted(found, reverse=True)


def test_devices_that_share_tokens_share_a_node(make_trace, make_choices):
    # pairs of experts fill a device, pairs of devices a node: tokens choose within 4 experts of 16
    rng = np.random.default_rng(0)
    trace = make_trace(make_choices(rng, rng.permutation(np.arange(16) % 4), 400, 3, 50.0)[None, None], 16)
    topology = cluster(8, nodes=4)
    placement = plan(trace, topology)
    assert (dispatch_volume(trace, placement, topology, 1, per_node).inter_node <= 400).all()
    node_of_expert = placement.device_of_expert[0] // 2
    assert all(len(set(node_of_expert[chosen])) == 1 for chosen in trace.expert_indices[0, 0])


def test_sizes_differ_by_one_and_absent_choices_count_nothing(clustered, make_trace):
    trace = clustered(0, 10, 3, 4)
    chosen = np.concatenate([trace.expert_indices, np.full((1, 1, 50, 3), -1, np.int16)], axis=2)
    with_absent = make_trace(chosen, 10)
    plans = [plan(each, cluster(4)) for each in (trace, with_absent)]
    assert sorted((plans[0].slots[0] >= 0).sum(-1).tolist()) == [2, 2, 3, 3]
    np.testing.assert_array_equal(plans[0].slots, plans[1].slots)


def test_what_cannot_be_planned_is_refused(clustered):
    trace = clustered(0, 8, 2, 2)
    load, sets = load_of(trace), trace.sets()
    with pytest.raises(ValueError, match=r"needs routing .* got none"):
        colocate(load, cluster(2), slots_per_device=4)
    with pytest.raises(ValueError, match="the load has 1 layers, the routing 2"):
        colocate(load, cluster(2), slots_per_device=4, routing=sets * 2)
    with pytest.raises(ValueError, match="layer 0: routing names expert 8, the load has 8"):
        colocate(load, cluster(2), slots_per_device=4, routing=[ExpertSets(np.array([[0, 8]]), np.array([3]))])
    with pytest.raises(ValueError, match="16 devices for 8 experts"):
        colocate(load, cluster(16), slots_per_device=1, routing=sets)
    with pytest.raises(ValueError, match=r"finite and not negative, got -1"):
        colocate(load - load.max() - 1, cluster(2), slots_per_device=4, routing=sets)
    with pytest.raises(ValueError, match=r"got -1\.0 and 16"):
        colocate(load, cluster(2), slots_per_device=4, routing=sets, load_weight=-1.0)
    with pytest.raises(ValueError, match=r"got 0\.0 and 0"):
        colocate(load, cluster(2), slots_per_device=4, routing=sets, starts=0)
