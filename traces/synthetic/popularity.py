"""Shapes of load: which share of a layer's tokens each expert is to get, step by step.

Each shape maps a `Size` and a generator to proportions (P, L, E) that sum to one; P is 1 where they never change, else
S. A share above 1 / K cannot be drawn, for a token takes an expert once: the sampler caps it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from traces.synthetic.size import Size

Popularity = Callable[[Size, np.random.Generator], Float[np.ndarray, "P L E"]]


@dataclass(frozen=True)
class Zipf:
    """A layer's r-th most popular expert has a share proportional to r ** -exponent; which it is, is random."""

    exponent: float

    def __post_init__(self) -> None:
        _check(self.exponent >= 0, "exponent must not be negative", self.exponent)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "1 L E"]:
        weight = np.arange(1, size.num_experts + 1) ** -float(self.exponent)
        weight_1LE = np.tile(weight / weight.sum(), (1, size.num_layers, 1))
        return rng.permuted(weight_1LE, axis=-1)


@dataclass(frozen=True)
class LogNormal:
    """Logarithms of the shares are normal with standard deviation `sigma`, but for their normalisation."""

    sigma: float

    def __post_init__(self) -> None:
        _check(self.sigma >= 0, "sigma must not be negative", self.sigma)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "1 L E"]:
        return _softmax(self.sigma * rng.normal(size=(1, size.num_layers, size.num_experts)))


@dataclass(frozen=True)
class Drift:
    """Log-shares that follow x_t = a x_{t-1} + sqrt(1 - a^2) sigma e_t, AR(1), from their stationary state.

    Attributes:
        sigma: standard deviation of a log-share at any time.
        half_life: steps after which half of a deviation is left, a = 2 ** (-1 / half_life).
    """

    sigma: float
    half_life: float

    def __post_init__(self) -> None:
        _check(self.sigma >= 0, "sigma must not be negative", self.sigma)
        _check(self.half_life > 0, "half_life must be positive", self.half_life)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "S L E"]:
        kept = 2.0 ** (-1.0 / self.half_life)
        logarithm_SLE = rng.normal(size=(size.num_steps, size.num_layers, size.num_experts))
        logarithm_SLE[1:] *= math.sqrt(1 - kept**2)
        for step in range(1, size.num_steps):
            logarithm_SLE[step] += kept * logarithm_SLE[step - 1]
        return _softmax(self.sigma * logarithm_SLE)


@dataclass(frozen=True)
class ExpertSet:
    """`num_experts` random experts of each layer get `share` of its tokens together, the others the rest.

    Either part is spread evenly; share 0 makes experts that get no token.
    """

    num_experts: int
    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "1 L E"]:
        _check_set(self.num_experts, size)
        chosen_E = np.arange(size.num_experts) < self.num_experts
        return _focus(rng.permuted(np.tile(chosen_E, (1, size.num_layers, 1)), axis=-1), self.share)


@dataclass(frozen=True)
class OneDevice:
    """All experts of one random device, the same in every layer, get `share` of the tokens; 0: it gets none."""

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "1 L E"]:
        _check(size.num_devices > 1, "the load of one device needs at least 2 devices", size.num_devices)
        chosen_E = _device_of_expert(size) == rng.integers(size.num_devices)
        return _focus(np.tile(chosen_E, (1, size.num_layers, 1)), self.share)


@dataclass(frozen=True)
class SpreadSet:
    """As many experts as one device holds get `share` of the tokens, but they lie on as many devices as possible.

    The counterpart of `OneDevice`: as uneven over experts, as even as can be over devices.
    """

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "1 L E"]:
        _check(size.num_devices > 1, "experts spread over devices need at least 2 devices", size.num_devices)
        device_E = _device_of_expert(size)
        num_chosen = size.num_experts // size.num_devices
        # taken in turn from every device: place of an expert on its own device first, device second
        turn_E = np.lexsort((device_E, np.concatenate([np.arange(n) for n in np.bincount(device_E)])))
        chosen_LE = np.zeros((size.num_layers, size.num_experts), bool)
        for chosen_E in chosen_LE:
            shuffled_E = np.lexsort((rng.random(size.num_experts), device_E))
            chosen_E[shuffled_E[turn_E[:num_chosen]]] = True
        return _focus(chosen_LE[None], self.share)


@dataclass(frozen=True)
class RotatingSet:
    """As `ExpertSet`, but every `period` steps the next experts of a random order take the share over."""

    num_experts: int
    share: float
    period: int

    def __post_init__(self) -> None:
        _check_share(self.share)
        _check(self.period > 0, "period must be at least 1 step", self.period)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "S L E"]:
        _check_set(self.num_experts, size)
        place_LE = rng.permuted(np.tile(np.arange(size.num_experts), (size.num_layers, 1)), axis=-1)
        turn_S = np.arange(size.num_steps) // self.period
        distance_SLE = (place_LE - self.num_experts * turn_S[:, None, None]) % size.num_experts
        return _focus(distance_SLE < self.num_experts, self.share)


@dataclass(frozen=True)
class Burst:
    """Even loads, but now and then one random expert of a layer takes `share` of its tokens for `length` steps.

    Attributes:
        rate: bursts a step and layer; a burst that starts during another one ends that.
        length: steps.
        share: of the tokens.
    """

    rate: float
    length: int
    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)
        _check(0 <= self.rate <= 1, "rate must lie in 0..1", self.rate)
        _check(self.length > 0, "length must be at least 1 step", self.length)

    def __call__(self, size: Size, rng: np.random.Generator) -> Float[np.ndarray, "S L E"]:
        step_S1 = np.arange(size.num_steps)[:, None]
        starts_SL = rng.random((size.num_steps, size.num_layers)) < self.rate
        last_SL = np.maximum.accumulate(np.where(starts_SL, step_S1, -self.length), axis=0)
        expert_SL = rng.integers(size.num_experts, size=starts_SL.shape)
        # before the first burst `last` is negative; what it picks there is not used
        expert_SL = np.take_along_axis(expert_SL, np.maximum(last_SL, 0), axis=0)
        bursting_SL = step_S1 - last_SL < self.length
        burst_SLE = _focus(np.arange(size.num_experts) == expert_SL[..., None], self.share)
        return np.where(bursting_SL[..., None], burst_SLE, 1.0 / size.num_experts)


def _softmax(logarithm: Float[np.ndarray, "P L E"]) -> Float[np.ndarray, "P L E"]:
    weight = np.exp(logarithm - logarithm.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def _focus(chosen: Bool[np.ndarray, "P L E"], share: float) -> Float[np.ndarray, "P L E"]:
    """`share` spread evenly over the chosen experts of a layer, the rest over its others."""
    num_chosen = chosen.sum(-1, keepdims=True)
    return np.where(chosen, share / num_chosen, (1 - share) / (chosen.shape[-1] - num_chosen))


def _check_set(num_chosen: int, size: Size) -> None:
    _check(0 < num_chosen < size.num_experts, f"a set must hold 1..{size.num_experts - 1} experts", num_chosen)


def _device_of_expert(size: Size) -> Int[np.ndarray, " E"]:
    experts = np.array_split(np.arange(size.num_experts), size.num_devices)
    return np.repeat(np.arange(size.num_devices), [len(held) for held in experts])


def _check_share(share: float) -> None:
    _check(0 <= share <= 1, "share must lie in 0..1", share)


def _check(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}")
