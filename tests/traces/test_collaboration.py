"""Collaboration profiles against slow, obvious references."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from traces.collaboration import (
    collaboration_degree,
    independent_collaboration,
    list_coverage,
    top_lists,
    transitions,
)
from traces.load import TraceSource
from traces.routing import RoutingTrace

SOURCE = TraceSource("nano", "topk", 0, 8, 2, "abc", "0.1.0")


@st.composite
def profiles(draw, at_least=0):
    """Symmetric counts (L, E, E) with small numbers, so that ties are common."""
    num_layers, num_experts = draw(st.integers(1, 3)), draw(st.integers(3, 7))
    counts = draw(arrays(np.int64, (num_layers, num_experts, num_experts), elements=st.integers(at_least, 4)))
    upper = np.triu(counts, 1)
    return upper + upper.transpose(0, 2, 1)


@st.composite
def traces(draw):
    """Distinct experts per token, some of them absent (-1)."""
    num_experts = draw(st.integers(2, 6))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 10)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = rng.permuted(np.broadcast_to(np.arange(num_experts), (*shape, num_experts)), axis=-1)
    chosen = chosen[..., : draw(st.integers(1, num_experts))].astype(np.int16)
    chosen[rng.random(chosen.shape) < 0.2] = -1
    return RoutingTrace(np.arange(shape[0]), chosen, np.zeros(shape[2], np.int16), num_experts, SOURCE)


@settings(max_examples=60)
@given(profiles(at_least=1), st.data())
def test_a_list_holds_the_most_co_activated_others(profile, data):
    num_experts = profile.shape[-1]
    top_t = data.draw(st.integers(1, num_experts - 1))
    expected = [
        [sorted(set(range(num_experts)) - {i}, key=lambda j: (-row[j], j))[:top_t] for i, row in enumerate(layer)]
        for layer in profile.tolist()
    ]
    np.testing.assert_array_equal(top_lists(profile, top_t), expected)


@settings(max_examples=60)
@given(profiles())
def test_degree_is_the_entropy_of_a_row(profile):
    found = collaboration_degree(profile)
    for layer, counts in enumerate(profile.tolist()):
        for expert, row in enumerate(counts):
            shares = [count / sum(row) for count in row if count > 0]
            degree = -sum(share * log(share) for share in shares) / log(len(row) - 1) if shares else np.nan
            np.testing.assert_allclose(found[layer, expert], degree, atol=1e-12)


@settings(max_examples=40)
@given(profiles(at_least=1), st.integers(0, 2**32 - 1))
def test_renaming_experts_renames_their_degrees(profile, seed):
    order = np.random.default_rng(seed).permutation(profile.shape[-1])
    renamed = profile[:, order][:, :, order]
    np.testing.assert_allclose(collaboration_degree(renamed), collaboration_degree(profile)[:, order])


@settings(max_examples=40)
@given(profiles(at_least=1))
def test_coverage_is_the_share_inside_the_lists(profile):
    num_experts = profile.shape[-1]
    expected = [
        [
            sum(counts[i, lists[i]].sum() for i in range(num_experts)) / counts.sum()
            for lists in (top_lists(profile, top_t)[layer] for top_t in range(1, num_experts))
        ]
        for layer, counts in enumerate(profile)
    ]
    np.testing.assert_allclose(list_coverage(profile), expected)


def test_nothing_together_has_no_coverage_and_no_degree():
    alone = np.zeros((1, 4, 4), int)
    assert np.isnan(list_coverage(alone)).all()
    assert np.isnan(collaboration_degree(alone)).all()


@settings(max_examples=40)
@given(arrays(np.int64, (2, 5), elements=st.integers(0, 9)))
def test_independent_experts_share_by_load(loads):
    found = independent_collaboration(loads)
    for layer, load in enumerate(loads.tolist()):
        for i in range(5):
            others = sum(load) - load[i]
            row = [load[i] * load[j] / others if j != i and others else 0.0 for j in range(5)]
            np.testing.assert_allclose(found[layer, i], row)


def test_equal_loads_make_independent_experts_fully_collaborative():
    independent = independent_collaboration(np.full((2, 6), 10))
    np.testing.assert_allclose(collaboration_degree(independent), 1.0)
    np.testing.assert_allclose(list_coverage(independent), [np.arange(1, 6) / 5] * 2)


def test_an_even_expert_has_degree_one_and_a_pair_zero():
    even = np.ones((1, 4, 4), int) - np.eye(4, dtype=int)
    pairs = np.array([[[0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]]])
    np.testing.assert_allclose(collaboration_degree(even), 1.0)
    np.testing.assert_allclose(collaboration_degree(pairs), 0.0)


def test_an_expert_is_no_partner_of_its_own():
    profile = np.array([[[9, 1, 0], [1, 9, 2], [0, 2, 9]]])
    np.testing.assert_array_equal(top_lists(profile, 2), [[[1, 2], [2, 0], [1, 0]]])
    np.testing.assert_allclose(collaboration_degree(profile)[0, [0, 2]], 0.0)


@settings(max_examples=60)
@given(traces())
def test_transitions_equal_the_obvious_count(trace):
    num_layers = trace.expert_indices.shape[1]
    expected = np.zeros((num_layers - 1, trace.num_experts, trace.num_experts), int)
    for chosen_LTK in trace.expert_indices.tolist():
        for layer in range(num_layers - 1):
            for here, there in zip(chosen_LTK[layer], chosen_LTK[layer + 1], strict=True):
                for i in here:
                    for j in there:
                        if i >= 0 and j >= 0:
                            expected[layer, i, j] += 1
    np.testing.assert_array_equal(transitions(trace), expected)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (np.ones((4, 4), int), r"counts \(L, E, E\), got \(4, 4\)"),
        (np.ones((1, 4, 3), int), r"counts \(L, E, E\), got \(1, 4, 3\)"),
        (np.ones((1, 4, 4)), "integer counts, got float64"),
        (-np.ones((1, 4, 4), int), "not be negative, got -1"),
        (np.arange(16).reshape(1, 4, 4), r"layer 0 has 1 for experts \(0, 1\) and 4 for \(1, 0\)"),
        (np.eye(4, dtype=int)[None], r"expert 0 of layer 0 was never chosen together .* dead"),
    ],
)
def test_what_is_no_profile_is_refused(profile, reason):
    with pytest.raises(ValueError, match=reason):
        top_lists(profile, 2)


@pytest.mark.parametrize("top_t", [0, 4])
def test_a_list_longer_than_the_others_is_refused(top_t):
    with pytest.raises(ValueError, match=f"top_t is {top_t}; with 4 experts it must lie in 1..3"):
        top_lists(np.ones((2, 4, 4), int), top_t)


def test_a_pair_of_experts_has_no_degree():
    with pytest.raises(ValueError, match="at least 3 experts, got 2"):
        collaboration_degree(np.ones((1, 2, 2), int))
