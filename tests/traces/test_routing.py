"""Sampled routings against slow, obvious references."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.load import TraceSource
from traces.routing import RoutingTrace, count_sets

SOURCE = TraceSource("nano", "topk", 0, 8, 2, "abc", "0.1.0")
NUM_EXPERTS = 5


def trace(expert_indices: np.ndarray, step=None) -> RoutingTrace:
    step = np.arange(expert_indices.shape[0]) if step is None else step
    device = np.zeros(expert_indices.shape[2], np.int16)
    return RoutingTrace(step, expert_indices, device, NUM_EXPERTS, SOURCE)


@st.composite
def routings(draw):
    """Distinct experts per token, some of them absent (-1)."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12)))
    num_chosen, seed = draw(st.integers(1, NUM_EXPERTS)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    chosen = rng.permuted(np.broadcast_to(np.arange(NUM_EXPERTS), (*shape, NUM_EXPERTS)), axis=-1)
    chosen = chosen[..., :num_chosen].astype(np.int16)
    chosen[rng.random(chosen.shape) < 0.2] = -1
    return trace(chosen)


@settings(max_examples=50)
@given(routings())
def test_collaboration_equals_the_obvious_count(routing):
    expected = np.zeros((routing.expert_indices.shape[1], NUM_EXPERTS, NUM_EXPERTS), int)
    for chosen_LTK in routing.expert_indices:
        for layer, chosen_TK in enumerate(chosen_LTK):
            for chosen in chosen_TK:
                for i, j in combinations([int(expert) for expert in chosen if expert >= 0], 2):
                    expected[layer, i, j] += 1
                    expected[layer, j, i] += 1
    np.testing.assert_array_equal(routing.collaboration(), expected)


@settings(max_examples=50)
@given(routings())
def test_sets_equal_the_obvious_count_and_know_every_pair(routing):
    for layer, found in enumerate(routing.sets()):
        tokens = routing.expert_indices[:, layer].reshape(-1, routing.expert_indices.shape[3])
        expected = Counter(tuple(sorted(chosen.tolist())) for chosen in tokens)
        counted = zip(map(tuple, found.experts.tolist()), found.count.tolist(), strict=True)
        assert dict(counted) == dict(expected)
        pairs = sum(
            count * np.sum(experts >= 0) * (np.sum(experts >= 0) - 1)
            for experts, count in zip(found.experts, found.count, strict=True)
        )
        assert pairs == routing.collaboration()[layer].sum()
        assert found.num_choices == (tokens >= 0).sum()
        assert found.starts(2).all()


@settings(max_examples=20)
@given(routings(), st.integers(0, 10**6))
def test_sets_by_source_are_those_of_each_device_alone(routing, seed):
    source = np.random.default_rng(seed).integers(3, size=routing.expert_indices.shape[2])
    told = count_sets(routing.expert_indices, source)
    for device in range(3):
        alone = count_sets(routing.expert_indices[:, :, source == device])
        for sets, expected in zip(told, alone, strict=True):
            here = sets.starts(3)[:, device]
            np.testing.assert_array_equal(sets.experts[here], expected.experts)
            np.testing.assert_array_equal(sets.count[here], expected.count)
    if source.max(initial=0) > 1:
        with pytest.raises(ValueError, match="the routing has tokens of device 2, there are 2 devices"):
            told[0].starts(2)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("indices", "step", "reason"),
    [
        (np.zeros((2, 1, 3), int), None, r"got \(2,\) and \(2, 1, 3\)"),
        (np.full((1, 1, 3, 2), NUM_EXPERTS), None, r"-1\.\.4, got 5\.\.5"),
        (np.full((1, 1, 3, 2), -2), None, r"got -2\.\.-2"),
        (np.zeros((1, 1, 3, 2)), None, "got float64"),
        (np.zeros((2, 1, 3, 2), int), np.array([4, 4]), r"got \[4, 4\]"),
    ],
)
def test_what_is_no_routing_is_refused(indices, step, reason):
    with pytest.raises(ValueError, match=reason):
        trace(indices, step)


@pytest.mark.usefixtures("as_users_call")
def test_every_token_has_one_source_device():
    with pytest.raises(ValueError, match=r"source_device has \(4,\), tokens are 3"):
        RoutingTrace(np.arange(1), np.zeros((1, 1, 3, 2), int), np.zeros(4, int), NUM_EXPERTS, SOURCE)
