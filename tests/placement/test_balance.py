"""Balance: one definition under all its names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from placement.balance import balance, device_load, lower_bound, max_over_mean
from placement.topology import Placement

PLACEMENT = Placement(np.array([[[0, 1, -1], [2, 0, -1]], [[2, 1, 0], [0, 1, -1]]]))
LOADS = hnp.arrays(np.float64, (4, 2, 3), elements=st.floats(0, 1e6))


@given(LOADS)
def test_device_load_equals_the_obvious_sum(load):
    expected = np.zeros((4, 2, 2))
    for layer, devices in enumerate(PLACEMENT.slots):
        for device, held in enumerate(devices):
            for expert in held[held >= 0]:
                expected[:, layer, device] += load[:, layer, expert] / np.sum(devices == expert)
    found = device_load(load, PLACEMENT)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.sum(-1), load.sum(-1), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(device_load(load[0], PLACEMENT), expected[0], rtol=1e-12, atol=1e-9)


def test_every_name_on_one_example():
    found = balance(np.array([[4, 2, 2, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    assert found["max_over_mean"].tolist() == [2.0, 1.0, 1.0]
    assert found["mean_over_max"].tolist() == [0.5, 1.0, 1.0]
    assert found["max_violation"].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(found["coefficient_of_variation"], [np.sqrt(2) / 2, 0.0, 0.0])


# below the normal numbers, 1e-308, no ratio is exact
@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(0, 1e6, allow_subnormal=False)), st.floats(0.5, 100))
def test_balance_lies_between_one_and_the_number_of_devices_and_has_no_unit(load, unit):
    ratio = max_over_mean(load)
    assert ((ratio >= 1 - 1e-12) & (ratio <= 4 + 1e-12)).all()
    loaded = load.sum(-1) > 1e-6
    np.testing.assert_allclose(max_over_mean(load * unit)[loaded], ratio[loaded], rtol=1e-9)


def test_the_lower_bound_is_the_mean_or_the_heaviest_expert():
    load = np.array([[1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert lower_bound(load, 2).tolist() == [1.0, 1.25, 1.0]
    with pytest.raises(ValueError, match="got 0"):
        lower_bound(load, 0)


def test_a_load_of_other_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\), the placement \(2, 3\)"):
        device_load(np.ones((2, 4)), PLACEMENT)
