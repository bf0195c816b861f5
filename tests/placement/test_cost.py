"""Seconds of an exchange against loops over links, and what a fit recovers from a sweep."""

from dataclasses import astuple
from itertools import product

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from placement.cost import CostModel, fit_cost, prediction_error
from placement.topology import Topology
from placement.volume import CommVolume

MODEL = CostModel(2e-3, 4e-8, 1e-9)
SHAPES = st.sampled_from([(1, 3), (2, 1), (2, 2), (3, 2), (4, 2)])
# magnitudes of a fast cluster and of a slow one
RATES = st.floats(1e-12, 1e-6)


def cluster(nodes: int, devices_per_node: int) -> Topology:
    return Topology(nodes, devices_per_node, 1e9, 25e6, 5e-5, 1e-4)


def same_node(topology: Topology) -> np.ndarray:
    return topology.node_of_device[:, None] == topology.node_of_device


def random_bytes(seed: int, topology: Topology, num_exchanges: int) -> np.ndarray:
    """Sizes over three orders of magnitude, some senders heavier than others."""
    rng = np.random.default_rng(seed)
    skew = rng.exponential(size=(num_exchanges, topology.num_devices, 1))
    size = 10 ** rng.uniform(4, 7, (num_exchanges, 1, 1))
    return (size * skew * rng.random((num_exchanges, topology.num_devices, topology.num_devices))).astype(np.int64)


def sweep(seed: int, topology: Topology, num_mixed: int) -> CommVolume:
    """Four exchanges between nodes, four inside them, and some that mix both in every proportion."""
    matrices, inside = random_bytes(seed, topology, 8 + num_mixed), same_node(topology)
    matrices[:4] *= ~inside
    matrices[4:8] *= inside
    faster = 10 ** np.random.default_rng(seed).uniform(-1, 3, (num_mixed, 1, 1))
    matrices[8:] = np.where(inside, matrices[8:] * faster, matrices[8:])
    return CommVolume(matrices, topology)


def slow_seconds(model: CostModel, matrix: np.ndarray, topology: Topology) -> float:
    """The slowest of all links, each visited by itself."""
    node, devices, slowest = topology.node_of_device, range(topology.num_devices), 0.0
    for end in (matrix, matrix.T):
        for n in range(topology.nodes):
            sent = sum(end[g, h] for g in devices for h in devices if node[g] == n != node[h])
            slowest = max(slowest, model.seconds_per_byte_between_nodes * sent)
        for g in devices:
            sent = sum(end[g, h] for h in devices if h != g and node[g] == node[h])
            slowest = max(slowest, model.seconds_per_byte_inside_node * sent)
    return model.seconds_per_exchange + slowest


@settings(max_examples=40)
@given(st.integers(0, 10**6), SHAPES, RATES, RATES)
def test_an_exchange_lasts_as_long_as_its_slowest_link(seed, shape, between, inside):
    topology, model = cluster(*shape), CostModel(1e-4, between, inside)
    matrices = random_bytes(seed, topology, 3)
    expected = [slow_seconds(model, matrix, topology) for matrix in matrices]
    np.testing.assert_allclose(model.seconds(CommVolume(matrices, topology)), expected)


@settings(max_examples=40)
@given(st.integers(0, 10**6), SHAPES, RATES, RATES)
def test_more_bytes_never_take_less_and_twice_the_bytes_at_most_twice(seed, shape, between, inside):
    topology, model = cluster(*shape), CostModel(1e-4, between, inside)
    matrices, more = random_bytes(seed, topology, 3), random_bytes(seed + 1, topology, 3)
    volume, message = CommVolume(matrices, topology), CommVolume(more * (more > more.mean()), topology)
    seconds = model.seconds(volume)
    assert (model.seconds(volume + message) >= seconds).all()
    assert (model.seconds(volume + volume) <= 2 * seconds * (1 + 1e-12)).all()
    # what stays on its device is free, and combine takes what dispatch takes
    local = CommVolume(matrices + 10**9 * np.eye(topology.num_devices, dtype=np.int64), topology)
    np.testing.assert_array_equal(model.seconds(local), seconds)
    np.testing.assert_allclose(model.seconds(volume.reverse), seconds)


def test_a_hot_node_costs_more_than_the_same_bytes_spread_and_an_idle_node_takes_some_for_nothing():
    topology = cluster(4, 1)
    even = 100 * (1 - np.eye(4, dtype=np.int64))
    # all of the same 1200 bytes go to node 0, which gets 1200 where each got 300
    hot = np.zeros_like(even)
    hot[1:, 0] = 400
    seconds = MODEL.seconds(CommVolume(np.stack([even, hot]), topology))
    np.testing.assert_allclose(seconds - MODEL.seconds_per_exchange, [300 * 4e-8, 1200 * 4e-8])
    hot[1, 2] = 400
    assert MODEL.seconds(CommVolume(hot, topology)) == seconds[1]


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_stages_add_up(seed, num_stages):
    topology = cluster(2, 2)
    stages = [CommVolume(random_bytes(seed + stage, topology, 3), topology) for stage in range(num_stages)]
    np.testing.assert_allclose(MODEL.seconds(*stages), sum(MODEL.seconds(stage) for stage in stages))


def test_a_data_sheet_is_a_model():
    assert CostModel.from_topology(cluster(4, 2)) == CostModel(1e-4, 1 / 25e6, 1e-9)
    assert CostModel.from_topology(cluster(1, 2)).seconds_per_exchange == 5e-5


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(2, 2), (3, 2), (4, 2)]), st.floats(1e-5, 1e-2), RATES, RATES)
def test_a_sweep_without_noise_gives_back_the_model(seed, shape, latency, between, inside):
    topology, model = cluster(*shape), CostModel(latency, between, inside)
    volume = sweep(seed, topology, num_mixed=12)
    fitted = fit_cost([volume], model.seconds(volume))
    assert prediction_error(fitted, [volume], model.seconds(volume)).worst < 1e-6
    # a rate that hides in the latency to the sixth digit is not asked for
    if min(between, inside) * 10**5 > 1e-3 * latency:
        np.testing.assert_allclose(astuple(fitted), astuple(model), rtol=1e-3)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-4, 1e-2))
def test_stages_over_one_kind_of_link_each_need_no_exchange_of_their_own(seed, latency):
    topology, model = cluster(2, 2), CostModel(latency, 4e-8, 1e-8)
    crossing, forwarding = (random_bytes(seed + stage, topology, 8) for stage in range(2))
    stages = [
        CommVolume(crossing * ~same_node(topology), topology),
        CommVolume(forwarding * same_node(topology), topology),
    ]
    np.testing.assert_allclose(astuple(fit_cost(stages, model.seconds(*stages))), astuple(model), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_the_rate_of_links_that_a_cluster_lacks_is_none(shape):
    volume = CommVolume(random_bytes(0, cluster(*shape), 5), cluster(*shape))
    expected = CostModel(2e-3, 4e-8, 0.0) if shape == (3, 1) else CostModel(2e-3, 0.0, 1e-9)
    np.testing.assert_allclose(astuple(fit_cost([volume], MODEL.seconds(volume))), astuple(expected), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_no_assignment_of_exchanges_to_links_fits_noise_better(seed):
    topology = cluster(2, 2)
    volume = sweep(seed, topology, num_mixed=6)
    seconds = MODEL.seconds(volume) * np.random.default_rng(seed).uniform(0.8, 1.25, 14)
    # a model of one parameter, 1, predicts what that parameter is multiplied by
    columns = [CostModel(*rates).seconds(volume) for rates in np.eye(3).tolist()]

    def error(model: CostModel) -> float:
        return float(np.square(model.seconds(volume) / seconds - 1).sum())

    def fit_of(crosses: np.ndarray) -> CostModel:
        design = np.stack([columns[0], columns[1] * crosses, columns[2] * ~crosses], axis=1) / seconds[:, None]
        scale = design.max(0)
        found = lsq_linear(design / scale, np.ones(14), (0, np.inf), method="bvls").x
        return CostModel(*(found / scale).tolist())

    every = (np.array([*[True] * 4, *[False] * 4, *mixed]) for mixed in product([False, True], repeat=6))
    least = min(error(fit_of(crosses)) for crosses in every)
    fitted = fit_cost([volume], seconds)
    assert error(fitted) <= least * (1 + 1e-9)
    assert error(fitted) <= error(MODEL)


def test_small_messages_count_as_much_as_large_ones():
    topology = cluster(2, 1)
    size = 10 ** np.arange(3, 9)
    volume = CommVolume(size[:, None, None] * np.array([[0, 1], [1, 0]]), topology)
    measured = MODEL.seconds(volume) * (1 + 0.1 * (-1) ** np.arange(6))
    fitted = fit_cost([volume], measured)
    assert prediction_error(fitted, [volume], measured).worst < 0.2
    # least squares of seconds would be off by more: the largest message alone would set the latency
    absolute = np.polyfit(size, measured, 1)
    assert np.abs(np.polyval(absolute, size) / measured - 1).max() > 0.2


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_a_clock_of_another_unit_gives_the_model_in_that_unit(seed, unit):
    volume = sweep(seed, cluster(2, 2), num_mixed=4)
    seconds = MODEL.seconds(volume) * np.random.default_rng(seed).uniform(0.9, 1.1, 12)
    expected = unit * np.array(astuple(fit_cost([volume], seconds)))
    np.testing.assert_allclose(astuple(fit_cost([volume], unit * seconds)), expected, rtol=1e-6, atol=1e-18)


def test_errors_of_prediction_are_relative_to_what_was_measured():
    volume = CommVolume(np.zeros((3, 2, 2), np.int64), cluster(2, 1))
    error = prediction_error(MODEL, [volume], np.array([2e-3, 1e-3, 4e-3]))
    np.testing.assert_allclose(error.relative, [0.0, 1.0, -0.5])
    assert (error.median, error.worst) == pytest.approx((0.5, 1.0))


BETWEEN = np.kron([[0, 0], [1, 0]], [[9, 9], [9, 9]])
INSIDE = np.kron(np.eye(2, dtype=int), [[0, 7], [0, 0]])


@pytest.mark.parametrize(
    ("matrices", "unknown"),
    [
        ([BETWEEN], "seconds_per_exchange and .*between_nodes and .*inside_node unknown: 1 of its 1"),
        ([BETWEEN, BETWEEN, BETWEEN], "seconds_per_exchange and .*between_nodes and .*inside_node"),
        ([BETWEEN, 2 * BETWEEN], "leaves seconds_per_byte_inside_node unknown"),
        ([n * INSIDE for n in (1, 2)], "leaves seconds_per_byte_between_nodes unknown"),
        ([BETWEEN, INSIDE], "unknown: 2 of its 2"),
        ([n * BETWEEN + INSIDE for n in (1, 2, 3)], "unknown: 0 of its 3"),
    ],
    ids=["one exchange", "one size", "only between", "only inside", "one size each", "only mixed"],
)
def test_a_sweep_that_leaves_a_parameter_unknown_is_refused_by_its_name(matrices, unknown):
    volume = CommVolume(np.stack(matrices), cluster(2, 2))
    with pytest.raises(ValueError, match=unknown):
        fit_cost([volume], MODEL.seconds(volume))


def test_what_no_model_or_measurement_can_be_is_refused(monkeypatch):
    volume = sweep(0, cluster(2, 2), num_mixed=0)
    seconds = MODEL.seconds(volume)
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            fit_cost([volume], np.where(np.arange(8) == 3, bad, seconds))
    with pytest.raises(ValueError, match=r"each exchange needs its seconds, got \(7,\)"):
        prediction_error(MODEL, [volume], seconds[:7])
    with pytest.raises(ValueError, match="stages must be at least one, of one shape"):
        MODEL.seconds(volume, volume.sum())
    with pytest.raises(ValueError, match="at least one"):
        MODEL.seconds()
    for bad in (-1e-9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds_per_byte_between_nodes must be finite and not negative"):
            CostModel(0.0, bad, 0.0)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="got"):
        fit_cost([], seconds)
