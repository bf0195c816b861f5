"""Collaboration pruning of Occult (Luo et al., 2025, arXiv 2505.13345): a token keeps N_d devices, and its experts off
them are replaced by experts on them.

That a token is limited to N_d devices, by router score or by expert similarity, is [2nd]; how is our reading [I]: the
kept devices are those with the largest sum of the scores of the token's K experts; a replacement by score is the
best-scored expert left on a kept device, one by similarity the expert left there whose gate weights have the largest
cosine with those of the pruned expert. Devices ranked by their best score instead would be device-limited routing.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from routers.devices import DeviceRouter


class OccultScore(DeviceRouter):
    """Pruned experts are replaced by the best-scored ones on the kept devices.

    Args:
        max_devices: N_d devices a token may reach.

    Raises:
        ValueError: N_d devices may hold fewer than K experts, or there are fewer than N_d.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, max_devices: int = 2, **gate: Any) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.require_room(max_devices)
        self.max_devices = max_devices

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        best, chosen = scores.topk(self.top_k, dim=-1)
        return self.replace(chosen, self.kept_devices(best, chosen), scores)

    def kept_devices(self, best: Float[Tensor, "T K"], chosen: Int[Tensor, "T K"]) -> Bool[Tensor, "T G"]:
        """The N_d devices (T, G) with the largest sum of scores of the chosen experts (T, K)."""
        mass_TG = best.new_zeros(len(best), self.num_devices).scatter_add_(1, self.device_of_expert[chosen], best)
        nearest = mass_TG.topk(self.max_devices, dim=-1).indices
        return torch.zeros_like(mass_TG, dtype=torch.bool).scatter_(1, nearest, True)

    def replace(
        self, chosen: Int[Tensor, "T K"], kept: Bool[Tensor, "T G"], scores: Float[Tensor, "T E"]
    ) -> Int[Tensor, "T K"]:
        """The choice (T, K) without experts off the kept devices (T, G)."""
        # a chosen expert on a kept device is among the K best there
        return self.best_within(scores, kept)


class OccultSimilarity(OccultScore):
    """Pruned experts are replaced, the best-scored first, by the most similar ones left on the kept devices."""

    def replace(
        self, chosen: Int[Tensor, "T K"], kept: Bool[Tensor, "T G"], scores: Float[Tensor, "T E"]
    ) -> Int[Tensor, "T K"]:
        similarity_EE = self.similarity()
        stays = kept.gather(1, self.device_of_expert[chosen])
        free = kept[:, self.device_of_expert].scatter(1, chosen, False)
        replaced = []
        for pruned, stay in zip(chosen.unbind(1), stays.unbind(1), strict=True):
            nearest = similarity_EE[pruned].masked_fill(~free, -torch.inf).argmax(-1)
            replaced.append(torch.where(stay, pruned, nearest))
            free = free.scatter(1, replaced[-1][:, None], False)
        return torch.stack(replaced, dim=1)

    def similarity(self) -> Float[Tensor, "E E"]:
        """Cosine of the experts' gate weights."""
        direction_ED = functional.normalize(self.gate.weight.detach().float(), dim=-1)
        return direction_ED @ direction_ED.T
