"""Cost-aware dropping (ours): the control of cost-aware device selection. The same device set, but the chosen experts
off it are dropped instead of replaced, so that fewer are computed."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routers.cost_aware import CostAware


class DropAware(CostAware):
    """The K best-scored experts, of which those off the token's device set are dropped (-1).

    A token is left with none where its set is one that holds none of its K best.
    """

    def choose_on(self, sets: Bool[Tensor, "T G"], scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        chosen = scores.topk(self.top_k, dim=-1).indices
        kept = sets.gather(1, self.device_of_expert[chosen])
        return torch.where(kept, chosen, -1)
