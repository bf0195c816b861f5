"""What routers share that know where experts live: the table of devices, a choice inside some devices, and a soft
penalty on the devices a token reaches (ours)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn import functional

from routers.base import Router, Routing
from routers.device_sets import best_first

DeviceTable = Sequence[Sequence[int]] | Integer[np.ndarray, "L E"]


class DeviceRouter(Router):
    """A router that knows the device of each expert.

    Args:
        device_of_expert: (L, E) device that holds each expert, of which row `layer` is used; or the node, for a router
            that is to limit nodes. Devices without an expert do not count. None: contiguous blocks.
        num_devices: G of the contiguous blocks.
        penalty: coefficient of `expected_devices`; 0 leaves that loss out.

    Raises:
        ValueError: a table for another model, no possible number of devices, or a negative penalty.
    """

    device_of_expert: Int[Tensor, " E"]
    experts_of_device: Int[Tensor, "G C"]

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        device_of_expert: DeviceTable | None = None,
        num_devices: int = 4,
        penalty: float = 0.0,
        **gate: Any,
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if penalty < 0:
            raise ValueError(f"penalty must not be negative, got {penalty}")
        self.penalty = penalty
        if device_of_expert is None:
            device_E = _contiguous(num_experts, num_devices)
        else:
            device_E = _row_of_layer(device_of_expert, num_experts, layer)
        self.num_devices = int(device_E.max()) + 1
        experts_GC = _experts_of_device(device_E)
        self.register_buffer("device_of_expert", torch.from_numpy(device_E), persistent=False)
        self.register_buffer("experts_of_device", torch.from_numpy(experts_GC), persistent=False)

    def require_room(self, num_devices: int) -> None:
        """Refuse a K that any `num_devices` devices may be too small for.

        Raises:
            ValueError: the smallest `num_devices` devices hold fewer than K experts, or there are not as many devices.
        """
        if not 1 <= num_devices <= self.num_devices:
            raise ValueError(f"a token may reach 1..{self.num_devices} devices here, got {num_devices}")
        held = int(self.device_of_expert.bincount().sort().values[:num_devices].sum())
        if held < self.top_k:
            raise ValueError(f"top_k is {self.top_k}, but {num_devices} device(s) may hold only {held} experts")

    def by_device(self, scores: Float[Tensor, "T E"], fill: float) -> Float[Tensor, "C G T"]:
        """Scores of each device's experts (C, G, T); `fill` where a device holds fewer than the largest, C."""
        scores_ET = functional.pad(scores, (0, 1), value=fill).T.contiguous()
        return scores_ET[self.experts_of_device.T]

    def best_within(self, scores: Float[Tensor, "T E"], allowed: Bool[Tensor, "T G"]) -> Int[Tensor, "T K"]:
        """The K best-scored experts of each token (T, K) on the devices it is allowed (T, G)."""
        return scores.masked_fill(~allowed[:, self.device_of_expert], -torch.inf).topk(self.top_k, dim=-1).indices

    def devices_reached(self, chosen: Int[Tensor, "T K"]) -> Int[Tensor, " T"]:
        """Distinct devices that hold a token's chosen experts (T,); choices of -1 reach none."""
        absent = self.num_devices
        device_TK = torch.where(chosen < 0, absent, self.device_of_expert[chosen.clamp(min=0)])
        reached = torch.zeros(len(chosen), absent + 1, dtype=torch.bool, device=chosen.device)
        return reached.scatter_(1, device_TK, True)[:, :absent].sum(-1)

    def losses(
        self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int = 1
    ) -> dict[str, Float[Tensor, ""]]:
        found = super().losses(logits, routing, num_sequences)
        if self.penalty:
            found["devices"] = self.penalty * expected_devices(routing.scores, self.device_of_expert, self.top_k)
        return found


def expected_devices(
    scores: Float[Tensor, "T E"], device_of_expert: Int[Tensor, " E"], top_k: int
) -> Float[Tensor, ""]:
    """Devices a token would reach if its K experts were K independent draws from its scores (ours).

    mean_t sum_g 1 - (1 - P_g)^K with P_g the sum of the scores on device g: 1 where one device has all the mass. It
    has a gradient towards fewer devices, which the choice itself has not. A batch without tokens gives 0.
    """
    if not len(scores):
        return scores.sum()
    mass_TG = scores @ functional.one_hot(device_of_expert).to(scores.dtype)
    return (1 - (1 - mass_TG) ** top_k).sum(-1).mean()


def device_affinity(scores_CGT: Float[Tensor, "C G T"], num_best: int) -> Float[Tensor, "T G"]:
    """Sum of the `num_best` best scores on each device (T, G)."""
    return torch.stack(best_first(scores_CGT.unbind(0), num_best)).sum(0).T


def _contiguous(num_experts: int, num_devices: int) -> Int[np.ndarray, " E"]:
    if not 1 <= num_devices <= num_experts:
        raise ValueError(f"num_devices must lie in 1..num_experts = {num_experts}, got {num_devices}")
    return np.arange(num_experts) * num_devices // num_experts


def _row_of_layer(device_of_expert: DeviceTable, num_experts: int, layer: int) -> Int[np.ndarray, " E"]:
    table = np.asarray(device_of_expert)
    if table.ndim != 2 or table.shape[1] != num_experts or layer >= len(table):
        raise ValueError(
            f"device_of_expert has shape {table.shape}, layer {layer} of this model needs "
            f"(more than {layer}, {num_experts})"
        )
    if not np.issubdtype(table.dtype, np.integer) or table.min() < 0:
        raise ValueError(f"device_of_expert must hold device numbers from 0, got {table.min()} ({table.dtype})")
    return np.unique(table[layer], return_inverse=True)[1].astype(np.int64)


def _experts_of_device(device_E: Int[np.ndarray, " E"]) -> Int[np.ndarray, "G C"]:
    """Experts of each device in ascending order; E, one more than the last expert, fills the shorter rows."""
    size_G = np.bincount(device_E)
    table = np.full((len(size_G), size_G.max()), len(device_E))
    table[np.arange(size_G.max()) < size_G[:, None]] = np.argsort(device_E, kind="stable")
    return table
