"""How evenly a placement spreads its load, under every name that the field uses.

All names are functions of device loads and of one ratio, max over mean. MaxVio is that of Wang et al. (2024,
arXiv 2408.15664), who take it over experts: pass expert loads instead of device loads to get theirs.
"""

import numpy as np
from jaxtyping import Float, Real

from placement.topology import Placement


def device_load(load: Real[np.ndarray, "*S L E"], placement: Placement) -> Float[np.ndarray, "*S L G"]:
    """Load of each device; an expert's load is split evenly over its replicas.

    Raises:
        ValueError: the load has other layers or experts than the placement.
    """
    placed = (placement.num_layers, placement.num_experts)
    if load.shape[-2:] != placed:
        raise ValueError(f"load has (L, E) = {load.shape[-2:]}, the placement {placed}")
    share_LGE = placement.holds / placement.num_replicas[:, None, :]
    return np.einsum("...le,lge->...lg", load, share_LGE)


def mean_load(load: Real[np.ndarray, "*J L E"]) -> Float[np.ndarray, "L E"]:
    """The one load that a planner plans for: the mean of several.

    Raises:
        ValueError: a load negative or not finite.
    """
    if not (np.isfinite(load).all() and load.min(initial=0) >= 0):
        raise ValueError(f"loads must be finite and not negative, got {load.min()}..{load.max()}")
    return load.reshape(-1, *load.shape[-2:]).mean(0)


def device_share(load: Real[np.ndarray, "*B E"], num_devices: int) -> Float[np.ndarray, "*B E"]:
    """Each expert's load over the mean load of a device; 0 where there is no load."""
    mean = load.sum(-1, keepdims=True) / num_devices
    return np.divide(load, mean, out=np.zeros(load.shape), where=mean > 0)


def max_over_mean(device_load: Real[np.ndarray, "*B G"]) -> Float[np.ndarray, "*B"]:
    """The busiest device's load over the mean: 1 is perfect, G the worst; 1 where there is no load."""
    mean = device_load.mean(-1)
    return np.divide(device_load.max(-1), mean, out=np.ones_like(mean, dtype=float), where=mean > 0)


def balance(device_load: Real[np.ndarray, "*B G"]) -> dict[str, Float[np.ndarray, "*B"]]:
    """Every name under which balance is reported, from one definition.

    Returns:
        max_over_mean: the busiest device over the mean.
        mean_over_max: its inverse, "balancedness" in serving engines: 1 is perfect.
        max_violation: (max - mean) / mean, also called MaxVio or imbalance: 0 is perfect.
        coefficient_of_variation: population standard deviation over the mean: 0 is perfect.
    """
    ratio = max_over_mean(device_load)
    mean = device_load.mean(-1)
    variation = np.divide(device_load.std(-1), mean, out=np.zeros_like(mean, dtype=float), where=mean > 0)
    return {
        "max_over_mean": ratio,
        "mean_over_max": np.asarray(1.0 / ratio),
        "max_violation": np.asarray(ratio - 1.0),
        "coefficient_of_variation": variation,
    }


def lower_bound(load: Real[np.ndarray, "*S L E"], num_devices: int) -> Float[np.ndarray, "*S L"]:
    """The least max over mean that a placement without replicas can have: max(mean, heaviest expert) / mean.

    No placement is below it; the optimum may lie above, clearly so where equal slots make the device of the
    heaviest expert take others too. 1 where there is no load.
    """
    if num_devices < 1:
        raise ValueError(f"num_devices must be at least 1, got {num_devices}")
    mean = load.sum(-1) / num_devices
    heaviest = np.divide(load.max(-1), mean, out=np.ones_like(mean, dtype=float), where=mean > 0)
    return np.maximum(heaviest, 1.0)
