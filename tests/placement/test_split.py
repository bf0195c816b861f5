"""Tokens split over replicas: the best split is one, and no split is better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.balance import device_load, lower_bound, max_over_mean
from placement.replicate_swaps import replicate_swaps
from placement.split import best_split
from placement.topology import Placement, Topology

TOPOLOGY = Topology(1, 4, 1.0, 1.0, 0.0, 0.0)


def test_a_worked_example():
    # expert 0 on both devices; 8 of its 12 tokens go where expert 1 is not, for 8 and 8
    placement, load = Placement(np.array([[[0, 2], [0, 1]]])), np.array([[12.0, 4.0, 0.0]])
    found = best_split(load, placement)
    np.testing.assert_allclose(found.proportion[0], [[2 / 3, 0, 1], [1 / 3, 1, 0]], atol=1e-9)
    assert found.max_over_mean.tolist() == pytest.approx([1.0])
    assert max_over_mean(device_load(load, placement)).tolist() == pytest.approx([1.25])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(4, 10), st.integers(3, 4))
def test_a_split_is_whole_and_never_less_even_than_halves(seed, num_experts, slots):
    planned, load = np.random.default_rng(seed).pareto(1.0, (2, 2, num_experts))
    placement = replicate_swaps(planned, TOPOLOGY, slots_per_device=slots)
    found = best_split(load, placement)
    assert not found.proportion[~placement.holds].any()
    assert found.proportion.min() >= -1e-9
    np.testing.assert_allclose(found.proportion.sum(1), 1.0, atol=1e-9)
    even = max_over_mean(device_load(load, placement))
    assert (found.max_over_mean <= even + 1e-9).all()
    assert (found.max_over_mean >= 1 - 1e-9).all()
    single = placement.num_replicas.max(1) == 1
    np.testing.assert_allclose(found.max_over_mean[single], even[single], rtol=1e-9)


def test_experts_on_every_device_split_evenly():
    load = np.array([[5.0, 1.0, 0.5, 0.0]])
    everywhere = Placement(np.tile(np.arange(4), (1, 4, 1)))
    assert best_split(load, everywhere).max_over_mean.tolist() == pytest.approx([1.0])
    assert lower_bound(load, 4).item() > 3


def test_no_load_is_even_and_what_has_no_meaning_is_refused():
    placement = Placement(np.arange(4).reshape(1, 4, 1))
    assert best_split(np.zeros((1, 4)), placement).max_over_mean.tolist() == [1.0]
    with pytest.raises(ValueError, match=r"\(1, 5\), the placement \(1, 4\)"):
        best_split(np.ones((1, 5)), placement)
    with pytest.raises(ValueError, match=r"finite and not negative, got -1\.0"):
        best_split(np.array([[1.0, -1.0, 1.0, 1.0]]), placement)
