"""Proven optima: against trying everything, and against each other."""

from itertools import product

import numpy as np
import pytest

from placement.exact import least_maximum, least_visits, least_visits_of_few
from traces.routing import ExpertSets


def layer(
    make_choices, seed: int, num_experts: int, top_k: int, strength: float = 2.0
) -> tuple[ExpertSets, np.ndarray]:
    """A layer's sets with hidden clusters, and its loads."""
    rng = np.random.default_rng(seed)
    hidden = rng.permutation(np.arange(num_experts) % 3)
    chosen = make_choices(rng, hidden, 200, top_k, strength)
    sets = ExpertSets(*np.unique(np.sort(chosen, axis=1), axis=0, return_counts=True))
    return sets, np.bincount(chosen.reshape(-1), minlength=num_experts)


def cost(sets: ExpertSets, load: np.ndarray, device_E: np.ndarray, num_devices: int, load_weight: float) -> float:
    """Set by set."""
    visits = [len({int(device_E[expert]) for expert in experts if expert >= 0}) for experts in sets.experts]
    load_G = np.bincount(device_E, load, num_devices)
    deviation = np.square(load_G / load_G.mean() - 1).mean()
    return float(np.average(visits, weights=sets.count) + load_weight * deviation)


def every_plan(num_experts: int, num_devices: int, most: int, least: int = 0) -> list[np.ndarray]:
    plans = np.array(list(product(range(num_devices), repeat=num_experts)))
    size_PG = (plans[:, :, None] == np.arange(num_devices)).sum(1)
    return list(plans[(size_PG.max(1) <= most) & (size_PG.min(1) >= least)])


@pytest.mark.parametrize("load_weight", [0.0, 4.0])
@pytest.mark.parametrize(("num_experts", "num_devices"), [(6, 2), (7, 3), (6, 1), (5, 5)])
def test_both_programmes_find_the_best_of_all_plans(make_choices, num_experts, num_devices, load_weight):
    sets, load = layer(make_choices, num_experts, num_experts, 2)
    sizes = -(-num_experts // num_devices), num_experts // num_devices
    plans = every_plan(num_experts, num_devices, *sizes)
    least = min(cost(sets, load, plan, num_devices, load_weight) for plan in plans)
    for programme in (least_visits_of_few, least_visits):
        found = programme(sets, load, num_devices, load_weight)
        assert found.cost == pytest.approx(least, abs=1e-9)
        assert cost(sets, load, found.device, num_devices, load_weight) == pytest.approx(least, abs=1e-9)
        assert np.ptp(np.bincount(found.device, minlength=num_devices)) <= 1


@pytest.mark.parametrize(("num_experts", "num_devices", "top_k"), [(12, 4, 3), (14, 4, 2), (13, 3, 4)])
def test_both_programmes_agree_where_not_all_plans_can_be_tried(make_choices, num_experts, num_devices, top_k):
    sets, load = layer(make_choices, 1, num_experts, top_k, strength=1.0)
    for load_weight in (0.0, 5.0):
        few, many = (
            programme(sets, load, num_devices, load_weight) for programme in (least_visits_of_few, least_visits)
        )
        assert few.cost == pytest.approx(many.cost, abs=1e-9)


def test_absent_choices_visit_no_device():
    sets = ExpertSets(np.array([[-1, -1], [-1, 0], [1, 2]]), np.array([5, 3, 2]))
    assert least_visits_of_few(sets, np.array([3, 2, 2, 0]), 2).cost == pytest.approx(0.3 + 0.2)


@pytest.mark.parametrize(("num_experts", "num_devices", "slots"), [(6, 2, 3), (7, 3, 3), (6, 3, 6), (4, 1, 4)])
def test_the_least_maximum_is_that_of_all_plans(num_experts, num_devices, slots):
    for seed in range(3):
        load = np.random.default_rng(seed).integers(1, 60, num_experts)
        plans = every_plan(num_experts, num_devices, slots)
        least = min(np.bincount(plan, load, num_devices).max() for plan in plans) * num_devices / load.sum()
        found = least_maximum(load, num_devices, slots)
        assert found.cost == pytest.approx(least)
        assert np.bincount(found.device, minlength=num_devices).max() <= slots


def test_no_load_is_even():
    assert least_maximum(np.zeros(4), 2, 2).cost == 1.0


def test_layers_that_are_too_large_are_refused(make_choices):
    sets, load = layer(make_choices, 0, 17, 2)
    with pytest.raises(ValueError, match="takes 16 experts at most, got 17"):
        least_visits_of_few(sets, load, 4)
    with pytest.raises(ValueError, match=r"32 experts on 4 devices form 10518300 groups, more than 200000"):
        least_visits(*layer(make_choices, 0, 32, 2), 4)
    with pytest.raises(ValueError, match="20 devices for 17 experts"):
        least_visits(sets, load, 20)
    with pytest.raises(RuntimeError, match=r"no proof within 0\.0 s"):
        least_maximum(np.random.default_rng(0).random(24), 5, 5, seconds=0.0)
