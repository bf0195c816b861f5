"""The policy that moves experts, on loads made up here."""

from functools import partial

import numpy as np
import pytest

from models.rebalancing import REMEMBERED, Prices, Rebalancing, busiest_tokens
from placement.cost import CostModel
from placement.joint import joint
from placement.lpt import lpt
from placement.movement import migration
from placement.payoff import Price
from placement.topology import Placement, Topology
from predictors.windows import LastValue, SlidingWindow
from traces.routing import ExpertSets

TOPOLOGY = Topology(1, 2, 1.0, 1.0, 0.0, 0.0)
START = Placement(np.array([[[0, 1], [2, 3]]]))
SKEWED = [60, 40, 10, 10]


def price(seconds: float = 1.0) -> Price:
    """An expert takes 100 s to move."""
    return Price(seconds, 100, CostModel(0.0, 0.0, 1.0))


def steps(*loads: list[int], count: int = 150) -> np.ndarray:
    """(S, 1, E): each load `count` times."""
    return np.concatenate([np.tile(np.array(load)[None, None], (count, 1, 1)) for load in loads])


def policy(**options) -> Rebalancing:
    return Rebalancing(**({"planner": lpt, "predictor": LastValue(), "horizon": 50, "window": 20} | options))


class TestPropose:
    def test_moves_where_the_saving_exceeds_the_cost_by_the_margin(self):
        # 100 pairs on the busiest device now, 70 then, 50 steps: 1,500 s for 100 s
        told = policy().propose(steps(SKEWED), START, TOPOLOGY, price(), every=10)
        assert (told.saving, told.cost) == (pytest.approx(1500.0), pytest.approx(100.0))
        assert busiest_tokens(np.array([SKEWED]), told.placement) == 70

    @pytest.mark.parametrize("options", [{"margin": 15.1}, {"horizon": 3}])
    def test_stays_where_it_does_not(self, options):
        told = policy(**({"margin": 2.0} | options)).propose(steps(SKEWED), START, TOPOLOGY, price(), every=1)
        assert (told.placement.slots == START.slots).all()
        assert (told.saving, told.cost) == (0.0, 0.0)

    def test_a_transient_layer_is_believed_until_the_next_decision_only(self):
        past = steps([10, 10, 60, 40], SKEWED, count=20)
        told = policy().propose(past, START, TOPOLOGY, price(), every=10)
        assert not told.stable.any()
        assert told.saving == pytest.approx(300.0)
        assert policy().propose(steps(SKEWED), START, TOPOLOGY, price(), every=10).stable.all()

    def test_an_unchanged_load_moves_nothing_twice(self):
        told = policy().propose(steps(SKEWED), START, TOPOLOGY, price(), every=10)
        again = policy().propose(steps(SKEWED), told.placement, TOPOLOGY, price(), every=10)
        assert (again.placement.slots == told.placement.slots).all()

    def test_the_planner_knows_where_experts_are(self):
        planner = partial(joint, communication_weight=0.0, movement_weight=100.0)
        told = policy(planner=planner)
        assert (told.propose(steps(SKEWED), START, TOPOLOGY, price(), 10).placement.holds == START.holds).all()

    def test_names_are_the_planners_where_it_knows_where_tokens_start(self):
        # tokens of device 0 want experts 2 and 3, those of device 1 the others: all four move, and no row is left
        sets = [ExpertSets(np.array([[2, 3], [0, 1]]), np.array([60, 60]), np.array([0, 1]))]
        told = policy(planner=partial(joint, movement_weight=0.1), margin=1.0)
        known = partial(told.propose, steps([30, 30, 30, 30]), START, TOPOLOGY, every=10)
        row = Price(0.0, 100, price().cost, seconds_per_row=1.0)
        moved = known(price=row, routing=sets)
        assert [sorted(held) for held in moved.placement.slots[0].tolist()] == [[2, 3], [0, 1]]
        # a row on each way for four of the 120 pairs a step, spared for 50 steps; two experts cross each way
        assert (moved.saving, moved.cost) == (pytest.approx(120 / 4 * 50), pytest.approx(200.0))
        cheap = Price(0.0, 100, price().cost, seconds_per_row=0.01)
        assert (known(price=cheap, routing=sets).placement.slots == START.slots).all()

    def test_a_predictor_that_leaves_experts_out_is_refused(self):
        class Silent:
            def forecast(self, past, horizon):
                return np.full((horizon, *past.shape[1:]), np.nan)

        with pytest.raises(ValueError, match="Silent does not forecast every expert"):
            Rebalancing(lpt, Silent()).propose(steps(SKEWED), START, TOPOLOGY, price(), 10)


@pytest.mark.parametrize("options", [{"horizon": 0}, {"window": 0}, {"margin": -1.0}])
def test_numbers_must_make_sense(options):
    with pytest.raises(ValueError, match="need horizon and window >= 1"):
        policy(**options)


def test_averages_serve_too():
    told = Rebalancing(lpt, SlidingWindow(20), horizon=50, window=20).propose(
        steps(SKEWED), START, TOPOLOGY, price(), 10
    )
    assert told.saving == pytest.approx(1500.0)


class TestPrices:
    def test_medians_of_what_was_seen_last(self):
        prices = Prices(TOPOLOGY)
        for seconds in (1000.0, *range(1, REMEMBERED + 1)):
            prices.saw_step(float(seconds), 2.0, 3.0 * seconds, 4.0)
        assert prices.price(100).seconds_per_token == pytest.approx((REMEMBERED + 1) / 2 / 2)
        assert prices.price(100).seconds_per_row == pytest.approx((REMEMBERED + 1) / 2 * 3 / 4)

    def test_a_byte_costs_what_moves_took_of_the_data_sheet(self):
        prices, swapped = Prices(TOPOLOGY), Placement(np.array([[[2, 1], [0, 3]]]))
        prices.saw_step(1.0, 1.0, 1.0, 1.0)
        volume = migration(START, swapped, TOPOLOGY, 100)
        by_data_sheet = prices.price(100).cost.seconds(volume).sum()
        prices.saw_move(3 * by_data_sheet, volume)
        assert prices.price(100).cost.seconds(volume).sum() == pytest.approx(3 * by_data_sheet)

    def test_a_move_of_nothing_says_nothing(self):
        prices = Prices(TOPOLOGY)
        prices.saw_move(5.0, migration(START, START, TOPOLOGY, 100))
        assert prices.slowness == []

    def test_before_any_step_there_is_no_price(self):
        with pytest.raises(ValueError, match="no step was timed yet"):
            Prices(TOPOLOGY).price(100)
