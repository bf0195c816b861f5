"""What a predictor of expert loads is, and what it hands on."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer

from traces.load import LoadTrace, proportions


@runtime_checkable
class Predictor(Protocol):
    """Anything with this method is a predictor; there is no base class to import.

    A predictor that learns from other runs also has `fit(traces: list[LoadTrace]) -> None`; the run it is
    tested on is never among them.
    """

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Load proportions of the `horizon` steps after `past` (token counts); NaN = series not forecast."""
        ...


@runtime_checkable
class TrainablePredictor(Predictor, Protocol):
    """A predictor that sees other runs before its first forecast."""

    def fit(self, traces: list[LoadTrace]) -> None:
        """Learn from runs other than the one to be forecast."""
        ...


@dataclass(frozen=True, eq=False)
class Forecast:
    """Load proportions of the steps that follow a cutoff.

    Attributes:
        cutoff: recorded steps known when the forecast was made; row h forecasts recorded step cutoff + h.
        proportion: (H, L, E); NaN where a series was not forecast.
        lower, upper: (H, L, E) bounds of an interval, where the predictor has one.

    Raises:
        ValueError: the shapes disagree, or the cutoff is negative.
    """

    cutoff: int
    proportion: Float[np.ndarray, "H L E"]
    lower: Float[np.ndarray, "H L E"] | None = None
    upper: Float[np.ndarray, "H L E"] | None = None

    def __post_init__(self) -> None:
        if self.cutoff < 0:
            raise ValueError(f"a forecast's cutoff must not be negative, got {self.cutoff}")
        for name in ("lower", "upper"):
            bound = getattr(self, name)
            if bound is not None and bound.shape != self.proportion.shape:
                raise ValueError(f"{name} has shape {bound.shape}, the forecast has shape {self.proportion.shape}")


def recent_proportions(
    past: Integer[np.ndarray, "S L E"], horizon: int, last: int | None = None
) -> Float[np.ndarray, "N L E"]:
    """Proportions of the last `last` steps (all of them when None, or when there are fewer).

    Raises:
        ValueError: there is no past, or the horizon is below 1.
    """
    if past.shape[0] == 0:
        raise ValueError(f"a forecast needs at least one past step, got token counts of shape {past.shape}")
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    return proportions(past if last is None else past[-last:])


def hold(level: Float[np.ndarray, "L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
    """The same proportions at every step of the horizon."""
    return np.repeat(level[None], horizon, axis=0)


def onto_simplex(forecast: Float[np.ndarray, "H L E"]) -> Float[np.ndarray, "H L E"]:
    """Negative shares become 0, then each layer is divided by its sum; a layer left with nothing is uniform.

    Rescaling rather than the Euclidean projection: that one subtracts the same amount from every expert,
    which changes a rarely used expert's share by a large factor.
    """
    positive = np.maximum(forecast, 0.0)
    total = positive.sum(-1, keepdims=True)
    return np.where(total > 0, positive / np.where(total > 0, total, 1.0), 1.0 / forecast.shape[-1])
