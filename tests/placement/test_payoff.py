"""Expected saving and cost of a move, against sums by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost import CostModel
from placement.payoff import Payoff, Price, merge, payoff
from placement.topology import Placement, Topology
from traces.routing import ExpertSets

TOPOLOGY = Topology(1, 2, 1.0, 1.0, 0.0, 0.0)
# layer 0: experts 0 and 1 together, or one on each device; layer 1 the same either way
CURRENT = Placement(np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]]]))
PLAN = Placement(np.array([[[0, 2], [1, 3]], [[1, 0], [3, 2]]]))
# bytes an expert = 10, a byte between devices of a node = 0.5 s
PRICE = Price(2.0, 10, CostModel(0.0, 0.0, 0.5))
TOKENS = np.array([[8.0, 6.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0]])


def expect(trusted, steps=3, price=PRICE) -> Payoff:
    return payoff(np.tile(TOKENS, (steps, 1, 1)), np.array(trusted), CURRENT, PLAN, TOPOLOGY, price)


def test_saving_is_what_the_busiest_device_is_spared_in_the_trusted_steps():
    # the busiest device has 14 pairs now and 9 then: 5 pairs x 2 s x 3 steps
    np.testing.assert_allclose(expect([3, 3]).saving, [30.0, 0.0])
    np.testing.assert_allclose(expect([1, 3]).saving, [10.0, 0.0])
    np.testing.assert_allclose(expect([0, 0]).saving, [0.0, 0.0])


def test_cost_is_that_of_the_bytes_and_nothing_where_nothing_moves():
    # expert 1 and expert 2 change places, each over its own link; slots of layer 1 only change their order
    np.testing.assert_allclose(expect([3, 3]).cost, [5.0, 0.0])
    with_latency = Price(2.0, 10, CostModel(1.0, 0.0, 0.5))
    np.testing.assert_allclose(expect([3, 3], price=with_latency).cost, [6.0, 0.0])


@given(st.integers(0, 5), st.floats(0, 10))
def test_a_layer_pays_by_the_margin_and_never_for_nothing(trusted, margin):
    found = expect([trusted, trusted], steps=5)
    assert found.pays(margin).tolist() == [trusted > 0 and 10.0 * trusted > 5.0 * margin, False]


def test_rows_have_their_price_where_the_routing_is_known():
    # 4 tokens of each device choose experts 0 and 2: two rows a token on the way to or from one device, or none
    sets = ExpertSets(np.array([[0, 2], [0, 2]]), np.array([4, 4]), np.array([0, 1]))
    told = Price(0.0, 10, CostModel(0.0, 0.0, 0.5), seconds_per_row=3.0)
    plan = Placement(np.tile([[0, 2], [1, 3]], (2, 1, 1)))
    found = payoff(np.tile(TOKENS, (2, 1, 1)), np.array([2, 1]), CURRENT, plan, TOPOLOGY, told, [sets, sets])
    # now each device sends 4 rows for 16 choices and gets as many; then the second one sends 4, the first none: no less
    np.testing.assert_allclose(found.saving, [0.0, 0.0])
    here = ExpertSets(np.array([[0, 2]]), np.array([4]), np.array([0]))
    found = payoff(np.tile(TOKENS, (2, 1, 1)), np.array([2, 1]), CURRENT, plan, TOPOLOGY, told, [here, here])
    # 4 rows for 8 choices, 16 choices a step, and none then
    np.testing.assert_allclose(found.saving, [3.0 * 0.5 * 16 * 2, 3.0 * 0.5 * 16])
    assert expect([3, 3]).saving[1] == 0.0


@pytest.mark.parametrize("wrong", [{"seconds_per_token": -1.0}, {"seconds_per_row": np.inf}, {"bytes_per_expert": -1}])
def test_prices_must_make_sense(wrong):
    with pytest.raises(ValueError, match="prices must be finite and not negative"):
        Price(**({"seconds_per_token": 1.0, "bytes_per_expert": 1, "cost": PRICE.cost} | wrong))


def test_merging_takes_chosen_layers_only_and_keeps_the_slots():
    current = Placement(np.array([[[0, 1, -1], [2, 3, -1]]] * 2))
    merged = merge(current, PLAN, np.array([True, False]))
    assert merged.slots.tolist() == [[[0, 2, -1], [1, 3, -1]], [[0, 1, -1], [2, 3, -1]]]
    with pytest.raises(ValueError, match="3 slots a device, more than 2"):
        merge(PLAN, current, np.array([True, False]))


def test_replicas_share_their_load():
    replicas = Placement(np.array([[[0, 1, -1], [2, 3, 0]]] * 2))
    found = payoff(
        TOKENS[None], np.array([1, 1]), merge(replicas, CURRENT, np.ones(2, bool)), replicas, TOPOLOGY, PRICE
    )
    # 14 pairs now; 10 and 6 with half of expert 0 on the other device
    np.testing.assert_allclose(found.saving, [8.0, -4.0])
    np.testing.assert_allclose(found.cost, [5.0, 5.0])


@pytest.mark.parametrize("trusted", [[4, 0], [-1, 0]])
def test_no_more_steps_are_trusted_than_were_forecast(trusted):
    with pytest.raises(ValueError, match="0 to 3, those forecast"):
        expect(trusted)


@pytest.mark.parametrize(("seconds", "size"), [(-1.0, 1), (np.inf, 1), (1.0, -1)])
def test_prices_are_finite_and_not_negative(seconds, size):
    with pytest.raises(ValueError, match="finite and not negative"):
        Price(seconds, size, PRICE.cost)
