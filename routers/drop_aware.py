"""Cost-aware dropping (ours): the control of cost-aware device selection. A token's K best experts, less those on
devices that are not worth their price: dropped instead of replaced, so that fewer are computed."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.devices import DeviceRouter


class DropAware(DeviceRouter):
    """Of the K best-scored experts those on the device set S with the best (mass kept) / (top-K mass) - cost * |S|.

    Nothing is refilled, so each device is judged by itself: it stays where its share of the top-K mass exceeds the
    cost. The device of the largest share always stays.

    Args:
        cost: price of a device, in shares of the top-K mass; 0 is top-k.

    Raises:
        ValueError: a cost outside 0..1.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, cost: float = 0.2, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if not 0 <= cost <= 1:
            raise ValueError(f"cost must lie in 0..1, got {cost}")
        self.cost = cost

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        best, chosen = scores.topk(self.top_k, dim=-1)
        device_TK = self.device_of_expert[chosen]
        mass_TG = best.new_zeros(len(best), self.num_devices).scatter_add_(1, device_TK, best)
        stays = mass_TG > self.cost * best.sum(-1, keepdim=True)
        stays.scatter_(1, mass_TG.argmax(-1, keepdim=True), True)
        return torch.where(stays.gather(1, device_TK), chosen, -1)
