"""The MoE layer: Router, Dispatcher, Experts and combine, as siblings that know nothing of one another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.dispatch import Dispatcher, nothing
from models.experts import Experts
from routers.base import Router, Routing
from routers.capacity import capacity, drop_over_capacity
from routers.losses import count_tokens

RouterFactory = Callable[[int, int, int], Router]
ExpertsFactory = Callable[..., Experts]


class MoEOutput(NamedTuple):
    """What a layer tells about one batch.

    Attributes:
        routing: the router's choice, before any token was dropped.
        load: (E,) tokens routed to each expert, before dropping.
        losses: auxiliary losses by name, weights applied; none outside training.
        plan: what dispatch sent where.
    """

    routing: Routing
    load: Int[Tensor, " E"]
    losses: dict[str, Tensor]
    plan: Any


class MoELayer(nn.Module):
    """Route, dispatch, compute, combine.

    Args:
        router: made by a factory with (dim, num_experts, layer).
        experts: local compute.
        dispatcher: moves rows to experts and back.
        capacity_factor: None = dropless; else choices beyond the expert capacity are dropped in training. A router's
            own factor comes first.
        shared: an expert that sees every token, (T, D) -> (T, D) (Dai et al., 2024, arXiv 2401.06066); it computes
            while rows travel.
        scale: of the routed experts' sum, where their weights sum to one and that is too little: DeepSeek-V3's
            routed_scaling_factor, LLaMA-MoE's 4.0 for 2 of 8 (Zhu et al., 2024, arXiv 2406.16554).

    Raises:
        ValueError: a capacity factor that is not positive.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        dispatcher: Dispatcher,
        capacity_factor: float | None = None,
        shared: nn.Module | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"capacity factor must be positive, got {capacity_factor}")
        self.router, self.experts, self.dispatcher = router, experts, dispatcher
        self.capacity_factor, self.shared, self.scale = capacity_factor, shared, scale

    def forward(
        self, x_TD: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"], num_sequences: int = 1
    ) -> tuple[Float[Tensor, "T D"], MoEOutput]:
        """Hidden states (T, D) and token ids (T,) to the layer's output (T, D) and what it tells of the batch.

        The tokens are `num_sequences` sequences of equal length, which only matters to losses taken per sequence.
        """
        logits_TE = self.router.logits(x_TD)
        routing = self.router.route(logits_TE, token_ids)
        aside_TD: list[Tensor] = []
        shared = self.shared
        meanwhile = nothing if shared is None else lambda: aside_TD.append(shared(x_TD))
        # rows travel as experts compute, a token's outputs are summed in the layer's own precision
        weighed = routing._replace(expert_weights=(routing.expert_weights * self.scale).to(x_TD.dtype))
        rows, tokens_per_expert, plan = self.dispatcher.dispatch(as_computed(x_TD), self._limited(weighed), meanwhile)
        out_TD = self.dispatcher.combine(self.experts(rows, tokens_per_expert), plan)
        out_TD = sum(aside_TD, start=out_TD)
        load = count_tokens(routing.expert_indices, self.router.num_experts)
        # a loss may need all ranks' counts, and only in training do all ranks come here
        losses = self.router.losses(logits_TE, routing, num_sequences) if self.training else {}
        return out_TD, MoEOutput(routing, load, losses, plan)

    def _limited(self, routing: Routing) -> Routing:
        # a method with a capacity of its own, such as Switch, keeps it in every model
        factor = self.router.capacity_factor or self.capacity_factor
        # nothing is dropped at evaluation: what is dropped depends on the batch, on later tokens too
        if factor is None or not self.training:
            return routing
        num_tokens, num_experts = routing.scores.shape
        limit = capacity(num_tokens, self.router.top_k, num_experts, factor)
        return drop_over_capacity(routing, limit)


def as_computed(x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
    """Rows in the precision in which experts compute them: autocast's, where it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
