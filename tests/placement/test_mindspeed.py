"""MindSpeed's policy: its average against the recursion, its decision at the threshold, and when it decides."""

from typing import Any

import numpy as np
import pytest

from placement.contiguous import contiguous
from placement.lpt import lpt
from placement.mindspeed import MindSpeed, mindspeed, variation
from placement.topology import Placement, Topology

TOPOLOGY = Topology(1, 2, 1.0, 1.0, 0.0, 0.0)
IN_ORDER = Placement(np.array([[[0, 1], [2, 3]]]))


def test_the_variation_is_that_of_the_sample():
    # 9 and 3: mean 6, sample standard deviation sqrt(18)
    assert variation(np.array([[5.0, 4.0, 2.0, 1.0]]), IN_ORDER).tolist() == pytest.approx([np.sqrt(18) / 6])
    assert variation(np.zeros((1, 4)), IN_ORDER).tolist() == [0.0]
    assert variation(np.ones((1, 4)), Placement(np.arange(4).reshape(1, 1, 4))).tolist() == [0.0]


def test_the_average_is_the_recursion():
    past = np.random.default_rng(0).integers(0, 100, (30, 2, 4))
    average = np.zeros((2, 4))
    for load in past:
        average = 0.9 * average + 0.1 * load
    np.testing.assert_allclose(MindSpeed().average(past), average)
    np.testing.assert_allclose(MindSpeed(decay=0.0).average(past), past[-1])


def test_a_layer_is_placed_anew_from_the_threshold_on():
    # 6 + 5 | 5 + 4 gives 6 + 4 | 5 + 5: a gain of sqrt(2) / 10 = 0.141
    load = np.array([[6.0, 5.0, 5.0, 4.0]])
    gain = variation(load, IN_ORDER).item()
    assert gain == pytest.approx(np.sqrt(2) / 10)
    given = {"slots_per_device": 2, "current": IN_ORDER}
    new = mindspeed(load, TOPOLOGY, **given, min_gain=gain)
    np.testing.assert_array_equal(new.slots, lpt(load, TOPOLOGY, slots_per_device=2).slots)
    kept = mindspeed(load, TOPOLOGY, **given, min_gain=gain + 1e-9)
    np.testing.assert_array_equal(kept.slots, IN_ORDER.slots)


def test_layers_decide_on_their_own():
    load = np.array([[6.0, 5.0, 5.0, 4.0], [5.0, 5.0, 5.0, 5.2], [9.0, 1.0, 1.0, 9.0]])
    current = contiguous(load, TOPOLOGY, slots_per_device=2)
    new = mindspeed(load, TOPOLOGY, slots_per_device=2, current=current)
    changed = (new.holds != current.holds).any((1, 2))
    assert changed.tolist() == [True, False, False]


def test_spare_slots_stay_empty():
    load = np.random.default_rng(0).random((2, 7))
    plan = mindspeed(load, TOPOLOGY, slots_per_device=6)
    assert sorted((plan.slots >= 0).sum(-1).reshape(-1).tolist()) == [3, 3, 4, 4]
    assert (plan.num_replicas == 1).all()


def test_the_policy_decides_every_fiftieth_iteration():
    past = np.tile([[6, 5, 5, 4]], (60, 1, 1))
    policy = MindSpeed()
    plans = {step: policy.replan(step, past[:step], IN_ORDER, TOPOLOGY) for step in (0, 1, 49, 50, 51, 100)}
    assert {step for step, plan in plans.items() if plan is not None} == {50, 100}
    found = plans[50]
    assert found is not None
    np.testing.assert_array_equal(found.slots, lpt(past[0], TOPOLOGY, slots_per_device=2).slots)
    # it stays where it went, and where there is nothing to gain
    assert policy.replan(100, past, found, TOPOLOGY) is None
    assert MindSpeed(min_gain=0.2).replan(50, past, IN_ORDER, TOPOLOGY) is None
    assert MindSpeed(every=7).replan(14, past, IN_ORDER, TOPOLOGY) is not None


def test_recent_loads_count_most():
    # balanced for 40 iterations, then 10 with a hot pair
    past = np.concatenate([np.full((40, 1, 4), 5), np.tile([[9, 9, 1, 1]], (10, 1, 1))])
    assert MindSpeed().replan(50, past, IN_ORDER, TOPOLOGY) is not None
    assert MindSpeed().replan(50, past[::-1], IN_ORDER, TOPOLOGY) is None


def test_what_cannot_be_is_refused():
    refused: list[tuple[str, Any]] = [("decay", 1.0), ("decay", -0.1), ("every", 0), ("min_gain", float("nan"))]
    for name, value in refused:
        with pytest.raises(ValueError, match=f"{name} .*{value}"):
            MindSpeed(**{name: value})
    with pytest.raises(ValueError, match=r"\(L, G, E\) = \(1, 2, 4\), load and topology \(2, 2, 4\)"):
        mindspeed(np.ones((2, 4)), TOPOLOGY, slots_per_device=2, current=IN_ORDER)
    with pytest.raises(ValueError, match="finite and not negative"):
        mindspeed(np.array([[1.0, -1.0]]), TOPOLOGY, slots_per_device=1)
