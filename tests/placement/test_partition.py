"""Planners around METIS and Mt-KaHyPar: what surrounds them always, what they find where they are installed."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.exact import least_visits_of_few
from placement.metis import metis
from placement.movement import moved_slots
from placement.mt_kahypar import mt_kahypar
from placement.partition import fit, plan_by_blocks
from placement.topology import Placement, Topology
from placement.volume import distinct_devices

MODULES = {metis: "pymetis", mt_kahypar: "mtkahypar"}
EACH = pytest.mark.parametrize("planner", list(MODULES), ids=lambda planner: planner.__name__)


def cluster(num_devices: int, nodes: int = 1) -> Topology:
    return Topology(nodes, num_devices // nodes, 1.0, 1.0, 0.0, 0.0)


def installed(planner):
    module = MODULES[planner]
    pytest.importorskip(module, reason=f"placement={planner.__name__} needs {module}")
    return planner


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(0, 2))
def test_blocks_that_are_too_large_give_up_as_few_as_they_must(seed, num_blocks, spare):
    rng = np.random.default_rng(seed)
    block_E = rng.integers(num_blocks, size=11)
    slots = -(-11 // num_blocks) + spare
    contains, weight = (rng.random((20, 11)) < 0.3).astype(float), rng.dirichlet(np.ones(20))
    found = fit(block_E, contains, weight, num_blocks, slots)
    assert np.bincount(found, minlength=num_blocks).max() <= slots
    surplus = np.maximum(np.bincount(block_E, minlength=num_blocks) - slots, 0).sum()
    assert (found != block_E).sum() == surplus


def test_the_expert_that_loses_least_gives_way():
    # 0, 1 and 2 are chosen together; 3 sits with them, and belongs to 4
    contains = np.array([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]])
    found = fit(np.array([0, 0, 0, 0, 1, 1]), contains, np.array([0.5, 0.5]), 2, 3)
    assert found.tolist() == [0, 0, 0, 1, 1, 1]


def test_blocks_become_devices_and_straddle_few_nodes(make_trace):
    # pairs are blocks; pairs 0 and 3, 1 and 2 are chosen together
    chosen = np.array([[0, 1, 6, 7], [2, 3, 4, 5]] * 10)[None, None]
    trace, topology = make_trace(chosen, 8), cluster(4, nodes=2)

    def pairs(sets, num_experts):
        return np.arange(num_experts) // 2

    plan = plan_by_blocks(pairs, trace.loads()[0], topology, 2, trace.sets(), None, 0)
    nodes = [set(node.reshape(-1).tolist()) for node in plan.slots[0].reshape(2, 2, 2)]
    assert nodes in ([{0, 1, 6, 7}, {2, 3, 4, 5}], [{2, 3, 4, 5}, {0, 1, 6, 7}])
    renamed = Placement(plan.slots[:, [3, 2, 0, 1]])
    again = plan_by_blocks(pairs, trace.loads()[0], topology, 2, trace.sets(), renamed, 0)
    assert moved_slots(renamed, again).tolist() == [0]


def test_with_nothing_chosen_together_nothing_is_cut(make_trace):
    trace = make_trace(np.arange(8)[None, None, :, None].astype(np.int16), 8)

    def never(sets, num_experts):
        raise AssertionError("called")

    plan = plan_by_blocks(never, trace.loads()[0], cluster(4), 2, trace.sets(), None, 0)
    assert (plan.slots >= 0).all()


@EACH
def test_a_missing_package_is_named(planner, make_trace, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[planner], None)
    trace = make_trace(np.array([[[[0, 1], [2, 3]]]]), 4)
    with pytest.raises(ImportError, match=f"placement={planner.__name__} needs {MODULES[planner]}: pip install"):
        planner(trace.loads()[0], cluster(2), slots_per_device=2, routing=trace.sets())


@EACH
def test_hidden_blocks_are_found(planner, make_trace):
    rng = np.random.default_rng(0)
    members = rng.permutation(32).reshape(4, 8)
    chosen = np.stack([rng.permutation(members[rng.integers(4)])[:3] for _ in range(500)])
    trace = make_trace(chosen[None, None], 32)
    plan = installed(planner)(trace.loads()[0], cluster(4), slots_per_device=8, routing=trace.sets())
    assert distinct_devices(trace, plan).item() == 1.0


@EACH
def test_a_cut_is_near_the_optimum_and_never_below(planner, make_trace, make_choices):
    rng = np.random.default_rng(0)
    trace = make_trace(make_choices(rng, rng.permutation(np.arange(12) % 4), 400, 3)[None, None], 12)
    load = trace.loads()[0]
    plan = installed(planner)(load, cluster(4), slots_per_device=3, routing=trace.sets())
    least = least_visits_of_few(trace.sets()[0], load[0], 4).cost
    assert least - 1e-9 <= distinct_devices(trace, plan).item() <= 1.15 * least
