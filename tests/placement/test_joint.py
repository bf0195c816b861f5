"""The joint search: its changes against recounting, its plans against proven optima, its prices against one another."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load, lower_bound, max_over_mean
from placement.exact import least_visits
from placement.joint import Weights, joint, measure, pareto_front
from placement.lpt import lpt
from placement.movement import moved_slots
from placement.swaps import Grouping, Swaps
from placement.topology import Placement, Topology
from placement.volume import distinct_devices, per_device, per_node, remote_copies
from traces.routing import ExpertSets, RoutingTrace, count_sets


def cluster(num_devices: int, nodes: int = 1) -> Topology:
    return Topology(nodes, num_devices // nodes, 1.0, 1.0, 0.0, 0.0)


@pytest.fixture(scope="session")
def clustered(make_trace, make_choices):
    """Layers with hidden clusters of four experts, tokens that take three."""

    def make(seed: int, num_experts: int, num_layers: int = 1, num_tokens: int = 400, strength: float = 2.0):
        rng = np.random.default_rng(seed)
        hidden = [rng.permutation(np.arange(num_experts) % (num_experts // 4)) for _ in range(num_layers)]
        layers = [make_choices(rng, each, num_tokens, 3, strength) for each in hidden]
        return make_trace(np.stack(layers)[None], num_experts)

    return make


def plan(trace: RoutingTrace, topology: Topology, slots: int, load: np.ndarray | None = None, **options) -> Placement:
    return joint(
        trace.loads()[0] if load is None else load, topology, slots_per_device=slots, routing=trace.sets(), **options
    )


def drifted(trace: RoutingTrace, seed: int = 0, size: float = 0.4) -> np.ndarray:
    load = trace.loads()[0]
    return load * np.exp(size * np.random.default_rng(seed).normal(size=load.shape))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([None, 4, 6]))
def test_the_change_of_every_swap_is_exact_with_prices_spare_slots_and_sources(seed, num_groups, priced, told, slots):
    rng = np.random.default_rng(seed)
    num_members = 8
    slots = None if slots is None or slots * num_groups < num_members else slots
    contains = (rng.random((30, num_members)) < 0.3).astype(float)
    share = rng.dirichlet(np.ones(num_members)) * num_groups
    price = rng.random((num_members, num_groups)) if priced else None
    free = rng.integers(num_groups, size=30)[:, None] == np.arange(num_groups) if told else None
    problem = Grouping(contains, rng.dirichlet(np.ones(30)), share, num_groups, 2.0, price, slots, free)
    state = Swaps(problem, rng.permutation(np.arange(num_members) % num_groups))
    for _ in range(2):
        pairs = ((state.change(), problem.cost), (state.change_of_worst(), problem.cost_of_worst))
        allowed = np.argwhere(np.isfinite(pairs[0][0]))
        for first, second in allowed:
            swapped = state.group.copy()
            swapped[[first, second]] = swapped[[second, first]]
            for change, cost in pairs:
                before, after = (cost(group[:num_members]) for group in (state.group, swapped))
                assert change[first, second] == pytest.approx(after - before, abs=1e-12)
        if len(allowed):
            state.swap(*rng.choice(allowed).tolist())


@pytest.mark.parametrize("seed", range(2))
def test_32_experts_on_8_devices_are_within_a_hundredth_of_the_proven_optimum(clustered, seed):
    trace = clustered(seed, 32, num_tokens=1000, strength=1.0 + seed)
    least = least_visits(trace.sets()[0], trace.loads()[0, 0], 8).cost
    found = distinct_devices(trace, plan(trace, cluster(8), 4, load_weight=0.0)).item()
    assert least - 1e-9 <= found <= 1.01 * least


def test_a_measured_plan_comes_to_what_its_parts_say(clustered):
    trace, topology = clustered(0, 16, num_layers=2), cluster(4)
    current, new = plan(trace, topology, 4), plan(trace, topology, 4, drifted(trace))
    point = measure(new, trace.loads()[0], trace.sets(), current)
    assert point.communication == pytest.approx(distinct_devices(trace, new).mean())
    assert point.load == pytest.approx(max_over_mean(device_load(trace.loads()[0], new)).mean())
    assert point.movement == pytest.approx(moved_slots(current, new).sum() / 32)
    assert measure(new, trace.loads()[0])[2:] == (0.0, point.load, 0.0)


def test_each_weight_buys_what_it_is_for(clustered):
    trace, topology = clustered(3, 32, num_layers=2, strength=1.5), cluster(8)
    load, sets = trace.loads()[0], trace.sets()
    near, mixed, even = (measure(plan(trace, topology, 4, load_weight=w), load, sets) for w in (0.0, 1.0, 100.0))
    assert near.communication < mixed.communication < even.communication
    assert near.load > mixed.load > even.load
    only_even = plan(trace, topology, 4, communication_weight=0.0)
    assert (
        measure(only_even, load).load
        <= max_over_mean(device_load(load, lpt(load, topology, slots_per_device=4))).mean() + 1e-9
    )
    # without communication no routing is needed
    unrouted = joint(load, topology, slots_per_device=4, communication_weight=0.0)
    np.testing.assert_array_equal(unrouted.slots, only_even.slots)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0]), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([4, 6]))
def test_no_plan_costs_more_than_staying_put(clustered, seed, load_weight, movement_weight, slots):
    trace, topology = clustered(seed, 16, num_tokens=150), cluster(4)
    current = plan(trace, topology, 4, starts=1)
    load = drifted(trace, seed)
    given_weights: dict[str, Any] = {"load_weight": load_weight, "movement_weight": movement_weight}
    new = plan(trace, topology, slots, load, current=current, starts=2, **given_weights)

    def cost(placement: Placement) -> float:
        point = measure(placement, load, trace.sets(), current)
        return point.communication + load_weight * (point.load - 1) + movement_weight * point.movement

    assert cost(new) <= cost(current) + 1e-9


def test_movement_has_its_price(clustered):
    trace, topology = clustered(0, 32, num_layers=2), cluster(8, nodes=2)
    current, load = plan(trace, topology, 4), drifted(trace)
    moved = [
        moved_slots(current, plan(trace, topology, 4, load, current=current, movement_weight=weight)).sum()
        for weight in (0.0, 0.3, 1000.0)
    ]
    assert moved[0] > moved[1] > moved[2] == 0
    # and nothing moves for nothing: names are kept
    assert moved_slots(current, plan(trace, topology, 4, current=current)).sum() == 0


@pytest.mark.parametrize("given_current", [False, True])
def test_experts_live_where_the_tokens_that_want_them_start(make_trace, given_current):
    # tokens of device g want experts of one kind; what they choose together says nothing about devices' names
    rng = np.random.default_rng(0)
    source = np.repeat([2, 0, 3, 1], 50)
    chosen = (4 * np.repeat(np.arange(4), 50)[:, None] + np.argsort(rng.random((200, 4)))[:, :2]).astype(np.int16)
    trace, topology = make_trace(chosen[None, None], 16, source), cluster(4)
    current = Placement(rng.permutation(16).reshape(1, 4, 4)) if given_current else None
    found = joint(
        trace.loads()[0], topology, slots_per_device=4, routing=trace.sets_by_source(), current=current, load_weight=0.0
    )
    assert remote_copies(trace, found, topology, per_device).item() == 0
    assert measure(found, trace.loads()[0], trace.sets_by_source()).communication == 0.0
    assert measure(found, trace.loads()[0], trace.sets()).communication == 1.0


def test_sources_are_worth_moving_for_at_their_price(clustered):
    trace = clustered(3, 16, strength=1.5)
    told = make_told(trace, 4)
    current, load, topology = plan(trace, cluster(4), 4), trace.loads()[0], cluster(4)
    options: dict[str, Any] = {"slots_per_device": 4, "current": current, "load_weight": 1.0}
    visits = [
        measure(joint(load, topology, routing=sets, movement_weight=weight, **options), load, told).communication
        for sets, weight in ((told, 0.0), (told, 1000.0), (trace.sets(), 0.0))
    ]
    assert visits[0] <= visits[1]
    assert visits[0] < visits[2]


def make_told(trace: RoutingTrace, num_devices: int) -> list[ExpertSets]:
    """The same tokens, each on the device that its first choice's number says."""
    source = trace.expert_indices[0, 0, :, 0] % num_devices
    return count_sets(trace.expert_indices, source)


def test_a_current_plan_with_replicas_offers_all_its_places(clustered):
    trace, topology = clustered(0, 16), cluster(4)
    everywhere = Placement(np.tile(np.arange(16), (1, 4, 1)))
    new = plan(trace, topology, 4, current=everywhere, movement_weight=10.0)
    assert moved_slots(everywhere, new).sum() == 0
    free = measure(plan(trace, topology, 4), trace.loads()[0], trace.sets())
    assert measure(new, trace.loads()[0], trace.sets()).communication < 1.1 * free.communication


def test_spare_slots_hold_uneven_numbers(make_trace):
    # one expert with half of all tokens, no two chosen together: alone, if the others fit elsewhere
    chosen = np.repeat(np.arange(6), [50, 10, 10, 10, 10, 10]).astype(np.int16)[None, None, :, None]
    trace = make_trace(chosen, 6)
    load = trace.loads()[0]
    for slots, expected in ((3, 1.4), (5, 1.0)):
        found = plan(trace, cluster(2), slots)
        assert max_over_mean(device_load(load, found)).item() == pytest.approx(expected)
    assert lower_bound(load, 2).item() == 1.0


def test_without_a_current_plan_devices_that_share_tokens_share_a_node(clustered):
    trace = clustered(0, 16, strength=50.0)
    topology = cluster(8, nodes=4)
    found = plan(trace, topology, 2)
    shuffled = Placement(found.slots[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    copies = [remote_copies(trace, each, topology, per_node).item() for each in (found, shuffled)]
    assert copies[0] < copies[1]


def test_the_front_holds_what_nothing_beats(clustered):
    trace, topology = clustered(1, 16, num_layers=2), cluster(4)
    current, load = plan(trace, topology, 4), drifted(trace)
    weights = [Weights(1.0, even, stay) for even in (0.0, 0.5, 5.0) for stay in (0.0, 0.3, 100.0)]
    given_all: dict[str, Any] = {"slots_per_device": 4, "routing": trace.sets(), "current": current}
    front = pareto_front(load, topology, **given_all, weights=weights)
    values = np.array([point[2:] for point in front])
    for value in values:
        worse_nowhere = (values <= value).all(1)
        assert worse_nowhere.sum() == 1
    assert [point.communication for point in front] == sorted(point.communication for point in front)
    # every searched plan is on it or beaten by a point of it
    for each in weights:
        options: dict[str, Any] = {
            "communication_weight": each.communication,
            "load_weight": each.load,
            "movement_weight": each.movement,
        }
        point = measure(joint(load, topology, **given_all, **options), load, trace.sets(), current)
        assert (values <= np.array(point[2:]) + 1e-12).all(1).any()
    for point in front:
        assert point[2:] == measure(point.placement, load, trace.sets(), current)[2:]
    assert front[-1].load < front[0].load
    assert min(values[:, 2]) == 0


def test_what_cannot_be_planned_is_refused(clustered):
    trace, topology = clustered(0, 16), cluster(4)
    load, sets = trace.loads()[0], trace.sets()
    with pytest.raises(ValueError, match=r"needs routing .* got none"):
        joint(load, topology, slots_per_device=4)
    refused: list[dict[str, Any]] = [{"load_weight": -1.0}, {"movement_weight": np.nan}, {"starts": 0}]
    refused.append({"communication_weight": np.inf})
    for bad in refused:
        with pytest.raises(ValueError, match=f"got .*{next(iter(bad.values()))}"):
            joint(load, topology, slots_per_device=4, routing=sets, **bad)
    current = Placement(np.arange(16).reshape(1, 2, 8))
    with pytest.raises(ValueError, match=r"\(L, G, E\) = \(1, 2, 16\), load and topology \(1, 4, 16\)"):
        joint(load, topology, slots_per_device=4, routing=sets, current=current)
    with pytest.raises(ValueError, match="finite and not negative"):
        joint(-1.0 - load, topology, slots_per_device=4, routing=sets)
    with pytest.raises(ValueError, match="has 4 replicas"):
        measure(Placement(np.tile(np.arange(16), (1, 4, 1))), load, sets)
