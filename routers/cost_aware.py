"""Cost-aware device selection (ours): a token takes the devices that are worth their price, then its K best experts
there. Nothing else of top-k changes: no lists, no auxiliary loss of its own."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routers.device_cost import device_cost
from routers.device_sets import best_sets
from routers.devices import DeviceRouter


class CostAware(DeviceRouter):
    """The K best-scored experts on the device set S with the best (top-K mass inside) / (top-K mass) - cost * |S|.

    Only sets that hold at least K experts count. Cost 0 is top-k.

    Args:
        cost: price of a device, in shares of the unrestricted top-K mass.
        mixed_cost: above 0, training draws the cost of each step uniformly from [0, mixed_cost]; evaluation uses
            `cost`.
        target_devices: mean devices a token to steer the cost to, which then starts at `cost`.
        gain: how much the cost changes a step and device above the target.
        seed: of the draws.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        cost: float = 0.2,
        mixed_cost: float = 0.0,
        target_devices: float | None = None,
        gain: float = 0.02,
        seed: int = 0,
        **gate: Any,
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.cost = device_cost(cost, mixed_cost, target_devices, gain, seed)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        chosen = self.choose_on(self.device_sets(scores), scores)
        if self.training:
            self.cost.observe(self.devices_reached(chosen))
        return chosen

    def device_sets(self, scores: Float[Tensor, "T E"]) -> Bool[Tensor, "T G"]:
        """The device set of each token (T, G) at the present cost."""
        return best_sets(self.by_device(scores, fill=-torch.inf), self.top_k, self.cost())

    def choose_on(self, sets: Bool[Tensor, "T G"], scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The choice (T, K) on each token's device set (T, G)."""
        return self.best_within(scores, sets)

    def finish_step(self) -> None:
        self.cost.finish_step()
