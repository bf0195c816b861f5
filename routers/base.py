"""The router seam: hidden states in, a `Routing` out.

A router subclasses `Router` with one method, `select`. Everything else (gate, scores, weights, losses) has a default
that a published method overrides where it differs.

A router that needs to know where experts live has `device_of_expert` among its arguments, one that needs a profile has
`collaboration`: whoever trains a model fills them in, for all layers, where a router's YAML names them.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from routers.losses import load_balance_loss, z_loss


class Routing(NamedTuple):
    """Which experts see a token. Names, order and number are those of MegaBlocks' router output.

    Attributes:
        scores: (T, E) gate probabilities of every expert.
        expert_weights: (T, K) weight of each chosen expert's output, 0 where there is none.
        expert_indices: (T, K) chosen experts, -1 where a token has fewer than K.
    """

    scores: Float[Tensor, "T E"]
    expert_weights: Float[Tensor, "T K"]
    expert_indices: Int[Tensor, "T K"]


class Router(nn.Module):
    """A gate and a choice.

    Args:
        dim: model width D, given by the model.
        num_experts: E, given by the model.
        layer: MoE layer number from 0, given by the model.
        top_k: K experts a token.
        renormalise: divide a token's K weights by their sum, as Mixtral and Qwen3 do; GPT-style top-1 does not.
        balance_weight: coefficient of the load-balance loss.
        z_weight: coefficient of the router z-loss.
        capacity_factor: drop choices beyond this router's own capacity; None leaves that to the model.

    Attributes:
        causal: whether a token's experts depend on no later token; a router for which they do cannot generate text, and
            its losses are no measure of quality.

    Raises:
        ValueError: K outside 1..E, or a negative coefficient.
    """

    causal: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        top_k: int,
        renormalise: bool = True,
        balance_weight: float = 0.0,
        z_weight: float = 0.0,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie in 1..num_experts = {num_experts}, got {top_k}")
        if balance_weight < 0 or z_weight < 0:
            raise ValueError(
                f"loss weights must not be negative, got balance_weight={balance_weight}, z_weight={z_weight}"
            )
        self.num_experts, self.layer, self.top_k, self.renormalise = num_experts, layer, top_k, renormalise
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"capacity_factor must be positive, got {capacity_factor}")
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.capacity_factor = capacity_factor
        self.gate = nn.Linear(dim, num_experts, bias=False)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        """Choose K experts a token from its scores (T, E); -1 marks a choice left empty."""
        raise NotImplementedError

    def score(self, logits: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Gate probabilities from gate logits."""
        return logits.softmax(-1)

    def weigh(self, scores: Float[Tensor, "T E"], chosen: Int[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        """Weights of the chosen experts (T, K), differentiable in the scores; 0 where the choice is -1."""
        weights = scores.gather(1, chosen.clamp(min=0)) * (chosen >= 0)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return weights

    def route(self, logits: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        """Turn gate logits (T, E) into a Routing; the choice itself carries no gradient."""
        scores = self.score(logits)
        chosen = self.select(scores.detach(), token_ids)
        return Routing(scores, self.weigh(scores, chosen), chosen)

    def logits(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """Gate logits in float32 whatever the model's precision: half precision misorders close experts."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return functional.linear(x_TD.float(), self.gate.weight.float())

    def forward(self, x: Float[Tensor, "... D"], token_ids: Int[Tensor, " T"] | None = None) -> Routing:
        """Route hidden states (..., D), flattened to T tokens: what MegaBlocks calls on the router it is given."""
        return self.route(self.logits(x.reshape(-1, x.shape[-1])), token_ids)

    @property
    def num_choices(self) -> int:
        """Columns of a Routing: K, or more where a token's number of experts varies and -1 fills the rest."""
        return self.top_k

    def finish_step(self) -> None:
        """Called after each optimiser step: a router that steers something by what it routed does so here."""

    def balance(self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int) -> Float[Tensor, ""]:
        """The loss that `balance_weight` weighs; arguments as of `losses`."""
        return load_balance_loss(routing.scores, routing.expert_indices)

    def losses(
        self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int = 1
    ) -> dict[str, Float[Tensor, ""]]:
        """Auxiliary losses by name, already multiplied by their weights; empty where all weights are 0.

        The T tokens are `num_sequences` sequences of equal length, one after the other.
        """
        found = {}
        if self.balance_weight:
            found["balance"] = self.balance_weight * self.balance(logits, routing, num_sequences)
        if self.z_weight:
            found["z"] = self.z_weight * z_loss(logits)
        return found
