"""The cheapest candidate: what it counts, against traces that hold every token, and what it keeps."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load
from placement.cheapest import cheapest, layer_seconds
from placement.colocate import colocate
from placement.contiguous import contiguous
from placement.cost import CostModel
from placement.lpt import lpt
from placement.set_rows import busiest_way, rows_of_sets
from placement.topology import Placement, Topology
from placement.volume import ACCOUNTINGS, PER_NODE_STAGES, dispatch_volume, per_device
from traces.routing import ExpertSets

MODEL = CostModel(1e-3, 4e-8, 1e-9)
PLANNERS = (contiguous, lpt, partial(colocate, starts=1), partial(colocate, load_weight=5.0, starts=1))
SETTINGS = settings(max_examples=8)


def cluster(nodes: int, devices_per_node: int) -> Topology:
    return Topology(nodes, devices_per_node, 1e9, 25e6, 5e-5, 1e-4)


def random_choices(make_choices, seed: int, num_layers: int = 2, num_tokens: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [make_choices(rng, rng.integers(3, size=8), num_tokens, 2) for _ in range(num_layers)]
    return np.stack(layers)[None]


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 2), (4, 1)]), st.booleans())
def test_expected_rows_are_those_of_every_token_started_on_every_device(
    make_trace, make_choices, seed, shape, replicated
):
    rng, topology = np.random.default_rng(seed), cluster(*shape)
    chosen = random_choices(make_choices, seed)
    chosen[rng.random(chosen.shape) < 0.2] = -1
    slots = np.arange(8)[rng.permutation(8)].reshape(1, 4, 2).repeat(2, 0)
    if replicated:
        slots = np.concatenate([slots, np.roll(slots, 1, axis=1)], axis=2)
    everywhere = make_trace(np.repeat(chosen, 4, axis=2), 8, np.tile(np.arange(4), 60))
    for accounting in (*ACCOUNTINGS, *PER_NODE_STAGES):
        rows = rows_of_sets(Placement(slots), topology, make_trace(chosen, 8).sets(), accounting)
        expected = dispatch_volume(everywhere, Placement(slots), topology, 1, accounting)
        np.testing.assert_array_equal(rows.bytes, expected.bytes[0])


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 2)]))
def test_rows_of_tokens_whose_sources_are_told_are_those_that_the_trace_sends(make_trace, make_choices, seed, shape):
    rng, topology = np.random.default_rng(seed), cluster(*shape)
    source = rng.integers(4, size=60)
    trace = make_trace(random_choices(make_choices, seed), 8, source)
    placement = Placement(rng.permutation(8).reshape(1, 4, 2).repeat(2, 0))
    for accounting in (*ACCOUNTINGS, *PER_NODE_STAGES):
        rows = rows_of_sets(placement, topology, trace.sets_by_source(), accounting)
        expected = dispatch_volume(trace, placement, topology, 1, accounting)
        np.testing.assert_array_equal(rows.bytes, 4 * expected.bytes[0])
    most = np.maximum(rows.bytes.sum(-1) - rows.bytes.diagonal(0, 1, 2), 0).max(-1)
    assert (busiest_way(rows) >= most).all()
    with pytest.raises(ValueError, match="tokens of device 3, there are 2 devices"):
        rows_of_sets(
            Placement(np.arange(8).reshape(1, 2, 4).repeat(2, 0)), cluster(1, 2), trace.sets_by_source(), per_device
        )


def test_a_worked_example():
    # two nodes of one device, expert e on device e; 3 tokens of ten choose both experts, 6 expert 0, 1 none
    sets = ExpertSets(np.array([[0, 1], [-1, 0], [-1, -1]]), np.array([3, 6, 1]))
    placement, load = Placement(np.array([[[0], [1]]])), np.array([[9.0, 3.0]])
    seconds = partial(layer_seconds, placement, cluster(2, 1), load, [sets])
    # half of the nine tokens with expert 0 cross to device 0, 4.5 rows of 100 bytes, and come back
    assert seconds(MODEL, row_bytes=100).tolist() == pytest.approx([2 * (1e-3 + 450 * 4e-8)])
    # twelve choices, of which device 0 works on nine
    computed = seconds(MODEL, row_bytes=100, seconds_per_token=1e-2) - seconds(MODEL, row_bytes=100)
    assert computed.tolist() == pytest.approx([9e-2])
    # stages pay their latency one after the other
    assert seconds(MODEL, PER_NODE_STAGES, 100).tolist() == pytest.approx([4e-3 + 900 * 4e-8])


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([(per_device,), PER_NODE_STAGES]), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_no_layer_is_slower_than_in_any_candidate(make_trace, make_choices, seed, stages, seconds_per_token):
    trace, topology = make_trace(random_choices(make_choices, seed), 8), cluster(2, 2)
    load = trace.loads()[0]
    given = {"slots_per_device": 2, "routing": trace.sets()}
    counted = {"stages": stages, "row_bytes": 512, "seconds_per_token": seconds_per_token}
    plan = cheapest(load, topology, planners=PLANNERS, cost=MODEL, **given, **counted)
    plans = [planner(load, topology, **given) for planner in PLANNERS]
    chosen, *others = (layer_seconds(each, topology, load, trace.sets(), MODEL, **counted) for each in (plan, *plans))
    np.testing.assert_allclose(chosen, np.min(others, axis=0))


@SETTINGS
@given(st.integers(0, 10**6))
def test_without_compute_the_width_of_a_row_changes_no_plan(make_trace, make_choices, seed):
    trace, topology = make_trace(random_choices(make_choices, seed), 8), cluster(2, 2)
    given = {"slots_per_device": 2, "routing": trace.sets(), "planners": PLANNERS}
    plans = [cheapest(trace.loads()[0], topology, **given, row_bytes=row_bytes) for row_bytes in (1, 4096)]
    np.testing.assert_array_equal(plans[0].slots, plans[1].slots)


def test_a_price_on_compute_buys_balance(make_trace, make_choices):
    trace, topology = make_trace(random_choices(make_choices, 0, num_layers=6), 8), cluster(2, 2)
    load, given = trace.loads()[0], {"slots_per_device": 2, "routing": trace.sets(), "planners": PLANNERS}
    free, dear = (cheapest(load, topology, **given, seconds_per_token=price) for price in (0.0, 1.0))
    busiest = device_load(load, dear).max(-1)
    assert (busiest <= device_load(load, free).max(-1)).all()
    assert (busiest < device_load(load, free).max(-1)).any()


def test_a_hot_node_is_not_worth_its_fewer_rows():
    # every token takes two of experts 0..3: together they leave node 0 two rows to get and node 1 none
    pairs = np.array([[first, second] for first in range(4) for second in range(first + 1, 4)])
    sets, load = [ExpertSets(pairs, np.full(6, 10))], np.array([[30.0] * 4 + [0.0] * 4])
    topology, together = cluster(2, 1), Placement(np.arange(8).reshape(1, 2, 4))
    apart = Placement(np.array([[[0, 1, 4, 5], [2, 3, 6, 7]]]))
    rows = [rows_of_sets(each, topology, sets, per_device) for each in (together, apart)]
    assert rows[0].inter_node < rows[1].inter_node

    def proposes(placement: Placement):
        return lambda load, topology, **options: placement

    options = {"slots_per_device": 4, "routing": sets, "planners": [proposes(together), proposes(apart)]}
    np.testing.assert_array_equal(cheapest(load, topology, **options).slots, apart.slots)


def test_what_cannot_be_compared_is_refused(make_trace, make_choices):
    trace, topology = make_trace(random_choices(make_choices, 0), 8), cluster(2, 2)
    load, sets = trace.loads()[0], trace.sets()
    with pytest.raises(ValueError, match=r"needs routing .* got none and 4"):
        cheapest(load, topology, slots_per_device=2, planners=PLANNERS)
    with pytest.raises(ValueError, match="and planners, got one and 0"):
        cheapest(load, topology, slots_per_device=2, routing=sets, planners=())
    with pytest.raises(ValueError, match=r"routing has 1 layers .* the placement 2 layers"):
        cheapest(load, topology, slots_per_device=2, routing=sets[:1], planners=[lpt])
    placement = lpt(load, topology, slots_per_device=2)
    with pytest.raises(ValueError, match="placement has 4 devices, the topology 8"):
        rows_of_sets(placement, cluster(2, 4), sets, per_device)
    for row_bytes, seconds_per_token in ((0, 0.0), (1, -1.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="row_bytes must be 1 or more"):
            layer_seconds(placement, topology, load, sets, MODEL, (per_device,), row_bytes, seconds_per_token)
