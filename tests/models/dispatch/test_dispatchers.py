"""Four gloo processes exchange tokens; together they must compute what one process computes alone."""

import dispatch_cases as cases
import numpy as np
import pytest

from models.dispatch import LocalDispatcher
from placement.volume import dispatch_volume, per_device, per_expert, per_node
from routers.base import Routing
from traces.load import TraceSource
from traces.routing import RoutingTrace

ACCOUNTINGS = {"per_expert": per_expert, "per_device": per_device, "per_node": per_node}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("dispatch_cases.py", 4, folder)
    return [np.load(folder / f"rank{rank}.npz") for rank in range(4)]


@pytest.fixture(params=["/".join((*case, name)) for case in cases.CASES for name in cases.DISPATCHERS])
def run(request, of_ranks):
    """A case with one dispatcher: its placement, its routing's name, its dispatcher's name, results by rank."""
    where, routing, name = request.param.split("/")
    keys = ("out", "x", "weights", "w1", "w2", "counts", "rows_sent", "metadata")
    found = [{key: rank[f"{request.param}/{key}"] for key in keys} for rank in of_ranks]
    return cases.placement(where), routing, name, found


def alone(routing_name):
    x, routing, gradient, _ = cases.batch(routing_name)
    x.requires_grad_()
    weights = routing.expert_weights.clone().requires_grad_()
    experts, dispatcher = cases.experts(), LocalDispatcher()
    rows, counts, plan = dispatcher.dispatch(x, Routing(routing.scores, weights, routing.expert_indices))
    out = dispatcher.combine(experts(rows, counts), plan)
    out.backward(gradient)
    found = {"out": out, "x": x.grad, "weights": weights.grad, "w1": experts.w1.grad, "w2": experts.w2.grad}
    return {key: value.detach().numpy() for key, value in found.items()}


def test_ranks_together_compute_what_one_process_computes(run):
    _, routing, _, found = run
    expected = alone(routing)
    for key in ("out", "x", "weights"):
        together = np.concatenate([rank[key] for rank in found])
        np.testing.assert_allclose(together, expected[key], atol=2e-5, rtol=1e-5, err_msg=key)


def test_gradients_of_all_replicas_of_an_expert_add_up(run):
    placement, routing, _, found = run
    expected = alone(routing)
    for key in ("w1", "w2"):
        total = np.zeros_like(expected[key])
        for slots, rank in zip(placement.slots[0], found, strict=True):
            for slot, expert in enumerate(slots):
                total[expert] += rank[key][slot] if expert >= 0 else 0.0
        np.testing.assert_allclose(total, expected[key], atol=2e-5, rtol=1e-5, err_msg=key)


def test_rows_sent_are_those_that_the_volume_predicts(run):
    placement, routing_name, name, found = run
    _, routing, _, share = cases.batch(routing_name)
    source = TraceSource("m", "r", 0, sum(share), routing.expert_indices.shape[1], "-", "-")
    starts = np.repeat(np.arange(4), share).astype(np.int16)
    trace = RoutingTrace(np.array([0]), routing.expert_indices.numpy()[None, None], starts, cases.EXPERTS, source)
    row_bytes = cases.WIDTH * 4
    expected = dispatch_volume(trace, placement, cases.TOPOLOGY, row_bytes, ACCOUNTINGS[name]).bytes[0, 0]
    counted = np.stack([rank["rows_sent"] for rank in found]) * row_bytes
    np.testing.assert_array_equal(counted, expected)


def test_every_choice_reaches_an_expert_and_empty_slots_get_none(run):
    placement, routing_name, _, found = run
    chosen = cases.batch(routing_name)[1].expert_indices
    assert sum(rank["counts"].sum() for rank in found) == int((chosen >= 0).sum())
    for slots, rank in zip(placement.slots[0], found, strict=True):
        assert not rank["counts"][slots < 0].any()


def test_what_travels_beside_the_rows_is_counted(run):
    placement, routing_name, name, found = run
    chosen = cases.batch(routing_name)[1].expert_indices
    counted = sum(int(rank["metadata"].sum()) for rank in found)
    slots = placement.slots_per_device
    counts_each = {"per_expert": slots, "per_device": 1 + slots, "per_node": (1 + 2 * slots) + (1 + slots)}[name]
    pair_bytes = {"per_expert": 0, "per_device": 8, "per_node": 16}[name]
    assert counted == 16 * 8 * counts_each + pair_bytes * int((chosen >= 0).sum())
