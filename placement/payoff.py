"""Does it pay to move experts? A plan's saving over the loads that are forecast, against what the move costs (ours).

A step waits in every layer for the device with most tokens and, where the routing is known, for the one that sends or
gets most rows. So a plan saves, layer by layer and step by step, the seconds that these take now less those that they
will take, for as long as the forecast is trusted; the move costs its bytes, over the link that takes longest. Layers
are decided one by one: what one gains pays for no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from placement.balance import device_load
from placement.cost import CostModel
from placement.movement import migration
from placement.set_rows import busiest_way, rows_of_sets
from placement.topology import Placement, Topology, widened
from placement.volume import Accounting, per_device
from traces.routing import ExpertSets


@dataclass(frozen=True)
class Price:
    """What a token and a byte cost.

    Attributes:
        seconds_per_token: of one more (token, expert) pair on a layer's busiest device, in a whole step.
        bytes_per_expert: of one expert's weights and all that moves with them.
        cost: of the move's exchange.
        seconds_per_row: of one more row that dispatch sends or gets on the device where that is most, with the rows
            that come back for it.

    Raises:
        ValueError: a price negative or not finite.
    """

    seconds_per_token: float
    bytes_per_expert: int
    cost: CostModel
    seconds_per_row: float = 0.0

    def __post_init__(self) -> None:
        seconds = self.seconds_per_token, self.seconds_per_row
        if not (min(seconds) >= 0 and max(seconds) < np.inf and self.bytes_per_expert >= 0):
            raise ValueError(
                f"prices must be finite and not negative, got {self.seconds_per_token} s a token, "
                f"{self.seconds_per_row} s a row and {self.bytes_per_expert} bytes an expert"
            )


@dataclass(frozen=True, eq=False)
class Payoff:
    """What a plan is expected to bring, in seconds, by layer.

    Attributes:
        saving: (L,) over the layer's trusted steps.
        cost: (L,) of moving the layer's experts.
    """

    saving: Float[np.ndarray, " L"]
    cost: Float[np.ndarray, " L"]

    def pays(self, margin: float) -> Bool[np.ndarray, " L"]:
        """Layers that save more than `margin` times what they cost; a layer in which nothing is saved never pays."""
        return (self.saving > 0) & (self.saving > margin * self.cost)


def payoff(
    tokens: Real[np.ndarray, "H L E"],
    trusted: Int[np.ndarray, " L"],
    current: Placement,
    plan: Placement,
    topology: Topology,
    price: Price,
    routing: Sequence[ExpertSets] | None = None,
    accounting: Accounting = per_device,
) -> Payoff:
    """Expected saving and cost of going from one placement to another.

    Args:
        tokens: forecast (token, expert) pairs of each expert in each of the next H steps.
        trusted: steps, at most H, for which a layer's forecast is believed and its plan kept.
        routing: of some tokens, as those to come are expected to choose; without it rows are not counted.
        accounting: of the rows.

    Raises:
        ValueError: shapes that do not go together, or more trusted steps than were forecast.
    """
    if trusted.min(initial=0) < 0 or trusted.max(initial=0) > len(tokens):
        raise ValueError(f"trusted steps must be 0 to {len(tokens)}, those forecast, got {trusted.tolist()}")
    busiest = [device_load(tokens, one).max(-1) for one in (current, plan)]
    counts_HL = np.arange(len(tokens))[:, None] < trusted
    saved_L = price.seconds_per_token * np.where(counts_HL, busiest[0] - busiest[1], 0.0).sum(0)
    if routing is not None:
        now_L, then_L = (_rows_per_choice(one, topology, routing, accounting) for one in (current, plan))
        choices_L = np.where(counts_HL, tokens.sum(-1), 0.0).sum(0)
        saved_L += price.seconds_per_row * (now_L - then_L) * choices_L
    seconds_L = price.cost.seconds(migration(current, plan, topology, price.bytes_per_expert))
    return Payoff(saved_L, np.where(_moves(current, plan), seconds_L, 0.0))


def merge(current: Placement, plan: Placement, chosen: Bool[np.ndarray, " L"]) -> Placement:
    """The plan in the chosen layers, the current placement in the others, with the current one's slots a device.

    Raises:
        ValueError: the plan has more slots a device.
    """
    wide = widened(plan, current.slots_per_device)
    return Placement(np.where(chosen[:, None, None], wide, current.slots))


def _rows_per_choice(
    placement: Placement, topology: Topology, routing: Sequence[ExpertSets], accounting: Accounting
) -> Float[np.ndarray, " L"]:
    """Rows on the device where they are most, over all devices' (token, expert) pairs."""
    rows_L = busiest_way(rows_of_sets(placement, topology, routing, accounting)) / topology.num_devices
    return rows_L / np.maximum([sets.num_choices for sets in routing], 1)


def _moves(current: Placement, plan: Placement) -> Bool[np.ndarray, " L"]:
    return (current.holds != plan.holds).any((1, 2))
