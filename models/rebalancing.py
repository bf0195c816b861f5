"""When experts should move while a model trains, and where to (ours).

Cong et al. (2024, arXiv:2404.16914) announce a placement scheme for the two states of expert loads; this is one. A
layer in the transient state is believed until the next decision only, a stable one for a longer horizon: what
fluctuates moves only where that pays at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from placement.balance import device_load
from placement.cost import CostModel
from placement.movement import relabel
from placement.payoff import Price, merge, payoff
from placement.topology import Placement, Topology, widened
from placement.volume import CommVolume
from predictors.base import Predictor
from predictors.states import detect_states
from traces.load import proportions
from traces.routing import ExpertSets

# timed steps and moves that count, so that one slow moment decides nothing
REMEMBERED = 5


@dataclass
class Prices:
    """What tokens, rows and bytes cost here, as timed.

    A token's price is the experts' seconds over the tokens of the busiest device, a row's that of dispatch and combine
    over the rows of the busiest way: averages, so what does not depend on their number is charged to them too. A byte
    that moves costs what the data sheet says, times what earlier moves took of it.

    Attributes:
        topology: whose data sheet.
        seconds_per_token, seconds_per_row: of the last timed steps.
        slowness: of the last moves: seconds over the data sheet's.
    """

    topology: Topology
    seconds_per_token: list[float] = field(default_factory=list)
    seconds_per_row: list[float] = field(default_factory=list)
    slowness: list[float] = field(default_factory=list)

    def saw_step(self, experts: float, tokens: float, exchange: float, rows: float) -> None:
        """A step, summed over layers.

        Args:
            experts: seconds on the slowest rank.
            tokens: `busiest_tokens`.
            exchange: seconds of dispatch and combine on the rank that waits least for others.
            rows: that dispatch sends on the busiest way (`placement.set_rows.busiest_way`).
        """
        self.seconds_per_token = [*self.seconds_per_token, experts / max(tokens, 1.0)][-REMEMBERED:]
        self.seconds_per_row = [*self.seconds_per_row, exchange / max(rows, 1.0)][-REMEMBERED:]

    def saw_move(self, seconds: float, volume: CommVolume) -> None:
        """A move's seconds on the slowest rank, and what it moved, batch axis (L,)."""
        told = float(CostModel.from_topology(self.topology).seconds(volume)[volume.bytes.any((1, 2))].sum())
        self.slowness = [*self.slowness, seconds / told][-REMEMBERED:] if told else self.slowness

    def price(self, bytes_per_expert: int) -> Price:
        """Medians of what was seen; ValueError before any step was."""
        if not self.seconds_per_token:
            raise ValueError("no step was timed yet, so nothing is known of what a token costs")
        cost = CostModel.from_topology(self.topology).times(median(self.slowness or [1.0]))
        return Price(median(self.seconds_per_token), bytes_per_expert, cost, median(self.seconds_per_row))


class Proposal(NamedTuple):
    """What should be done now.

    Attributes:
        placement: where experts should live; the current placement's slots in the layers that stay.
        stable: (L,) whether a layer is believed for the whole horizon.
        saving, cost: expected seconds of the layers that move.
    """

    placement: Placement
    stable: Bool[np.ndarray, " L"]
    saving: float
    cost: float


@dataclass(frozen=True)
class Rebalancing:
    """Forecast the loads, plan for them, and move the layers in which that pays.

    Attributes:
        planner: of `placement`; it is told the current placement.
        predictor: of `predictors`, one that forecasts every expert.
        horizon: steps for which a stable layer's forecast is believed.
        margin: expected saving over expected cost from which a layer moves: hysteresis.
        window, enter: of `predictors.states.detect_states`.

    Raises:
        ValueError: a horizon or window below 1, or a negative margin.
    """

    planner: Callable[..., Placement]
    predictor: Predictor
    horizon: int = 1000
    margin: float = 2.0
    window: int = 50
    enter: float = 0.02

    def __post_init__(self) -> None:
        if min(self.horizon, self.window) < 1 or self.margin < 0:
            raise ValueError(
                f"need horizon and window >= 1 and margin >= 0, got {self.horizon}, {self.window} and {self.margin}"
            )

    def propose(
        self,
        past: Integer[np.ndarray, "S L E"],
        current: Placement,
        topology: Topology,
        price: Price,
        every: int,
        routing: Sequence[ExpertSets] | None = None,
    ) -> Proposal:
        """What to do after the steps of `past`, with `every` more until the next decision.

        Args:
            routing: of the last step or some of its tokens, as those to come are expected to choose.

        Raises:
            ValueError: the predictor leaves experts out, or the planner refuses.
        """
        proportion_HLE = self.predictor.forecast(past, self.horizon)
        if not np.isfinite(proportion_HLE).all():
            raise ValueError(f"{type(self.predictor).__name__} does not forecast every expert: take another predictor")
        tokens_HLE = proportion_HLE * past[-1].sum(-1, keepdims=True)
        stable_L = self.stable(past)
        trusted_L = np.where(stable_L, self.horizon, min(every, self.horizon))
        plan = self.plan(_mean_of_first(tokens_HLE, trusted_L), current, topology, routing)
        found = payoff(tokens_HLE, trusted_L, current, plan, topology, price, routing)
        chosen_L = found.pays(self.margin)
        expected = float(found.saving[chosen_L].sum()), float(found.cost[chosen_L].sum())
        return Proposal(merge(current, plan, chosen_L), stable_L, *expected)

    def stable(self, past: Integer[np.ndarray, "S L E"]) -> Bool[np.ndarray, " L"]:
        """Whether each layer is stable now; none is while too little is known."""
        if len(past) < 2 * self.window:
            return np.zeros(past.shape[1], bool)
        return detect_states(proportions(past), window=self.window, enter=self.enter).stable[-1]

    def plan(
        self,
        load_LE: Float[np.ndarray, "L E"],
        current: Placement,
        topology: Topology,
        routing: Sequence[ExpertSets] | None = None,
    ) -> Placement:
        """The planner's placement for a load, in the current one's slots.

        Devices are named so that the fewest experts move; where the routing tells on which device tokens start, as the
        planner names them.
        """
        slots = current.slots_per_device
        found = self.planner(load_LE, topology, slots_per_device=slots, routing=routing, current=current)
        plan = Placement(widened(found, slots))
        tells = routing is not None and all(sets.source is not None for sets in routing)
        return plan if tells else relabel(plan, current, topology)


def busiest_tokens(tokens: Integer[np.ndarray, "L E"], placement: Placement) -> float:
    """(token, expert) pairs of the busiest device, summed over layers: what a step waits for."""
    return float(device_load(tokens, placement).max(-1).sum())


def _mean_of_first(tokens: Float[np.ndarray, "H L E"], trusted: Integer[np.ndarray, " L"]) -> Float[np.ndarray, "L E"]:
    """Each layer's mean over as many steps as are trusted."""
    counts_HL = np.arange(len(tokens))[:, None] < trusted
    return (tokens * counts_HL[..., None]).sum(0) / np.maximum(trusted, 1)[:, None]
