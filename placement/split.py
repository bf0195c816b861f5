"""Tokens split over replicas by linear programming: the least maximum that a placement with replicas allows (ours).

Placements are scored with each expert's tokens split evenly over its replicas (`placement.balance.device_load`). A
dispatcher that may split them otherwise can do better; how much better is a linear programme in the tokens x that
device g takes of expert e: minimise t, where each device takes at most t and each expert's tokens are all taken.
DeepSeek-AI's LPLB (2025, github.com/deepseek-ai/LPLB) solves such programmes on the fly.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy import sparse
from scipy.optimize import linprog

from placement.balance import device_share
from placement.topology import Placement


class Split(NamedTuple):
    """The best split of each layer.

    Attributes:
        proportion: (L, G, E) of an expert's tokens that each device takes: 0 where it does not hold it, 1 in all.
        max_over_mean: (L,) of the device loads under it, the least there is for the placement; 1 without load.
    """

    proportion: Float[np.ndarray, "L G E"]
    max_over_mean: Float[np.ndarray, " L"]


def best_split(load: Real[np.ndarray, "L E"], placement: Placement) -> Split:
    """Split each expert's tokens over its replicas so that the busiest device has the least load.

    Raises:
        ValueError: the load has other layers or experts than the placement, or is negative or not finite.
    """
    placed = (placement.num_layers, placement.num_experts)
    if load.shape != placed:
        raise ValueError(f"load has (L, E) = {load.shape}, the placement {placed}")
    if not (np.isfinite(load).all() and load.min() >= 0):
        raise ValueError(f"loads must be finite and not negative, got {load.min()}..{load.max()}")
    share_LE = device_share(load, placement.num_devices)
    proportion = np.stack([_split(*layer) for layer in zip(share_LE, placement.holds, strict=True)])
    worst_L = np.einsum("lge,le->lg", proportion, share_LE).max(1)
    return Split(proportion, np.where(share_LE.any(1), worst_L, 1.0))


def _split(share_E: Float[np.ndarray, " E"], holds_GE: Bool[np.ndarray, "G E"]) -> Float[np.ndarray, "G E"]:
    device_V, expert_V = np.nonzero(holds_GE)
    num_devices, num_variables = len(holds_GE), len(device_V)
    column_V = np.arange(num_variables)
    # the last variable is the largest device load
    taken = sparse.csr_array((share_E[expert_V], (device_V, column_V)), shape=(num_devices, num_variables + 1))
    within = taken - sparse.csr_array(
        (np.ones(num_devices), (np.arange(num_devices), np.full(num_devices, num_variables))), shape=taken.shape
    )
    whole = sparse.csr_array((np.ones(num_variables), (expert_V, column_V)), shape=(len(share_E), num_variables + 1))
    cost = np.append(np.zeros(num_variables), 1.0)
    found = linprog(cost, A_ub=within, b_ub=np.zeros(num_devices), A_eq=whole, b_eq=np.ones(len(share_E)))
    assert found.success, found.message
    proportion_GE = np.zeros(holds_GE.shape)
    proportion_GE[device_V, expert_V] = found.x[:-1]
    return proportion_GE
