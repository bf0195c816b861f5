"""Noisy top-k gating (Shazeer et al., 2017, arXiv 1701.06538): in training every expert's gate gets normal noise of a
learned scale, and the variation of the experts' importance and of a smooth estimate of their load is penalised."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from routers.base import Routing
from routers.losses import count_tokens, squared_variation
from routers.step_sum import total_over_ranks
from routers.topk import TopK


class NoisyLogits(NamedTuple):
    """What the load estimate needs of one forward: noisy and clean logits and the noise's standard deviation, (T, E)
    each."""

    noisy: Float[Tensor, "T E"]
    clean: Float[Tensor, "T E"]
    scale: Float[Tensor, "T E"]


class NoisyTopK(TopK):
    """Top-k of noisy logits in training, of clean ones at evaluation.

    `logits` draws the noise, and `losses` of the logits it returned uses what was drawn.

    Args:
        seed: of the noise; layers draw independently. The generator's state is part of every checkpoint.
        noise_epsilon: added to the learned scale.

    Raises:
        ValueError: an epsilon that is not positive.
    """

    def __init__(
        self, dim: int, num_experts: int, layer: int, *, seed: int = 0, noise_epsilon: float = 0.01, **gate: Any
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        if noise_epsilon <= 0:
            raise ValueError(f"noise_epsilon must be positive, got {noise_epsilon}")
        self.noise_epsilon = noise_epsilon
        self.noise = nn.Linear(dim, num_experts, bias=False)
        self.generator = torch.Generator().manual_seed(seed * 1_000 + layer)
        self.drawn: NoisyLogits | None = None

    def logits(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """H(x) of equation 4 in training, x W_g at evaluation."""
        clean = super().logits(x_TD)
        if not self.training:
            return clean
        with torch.autocast(x_TD.device.type, enabled=False):
            raw_scale = functional.linear(x_TD.float(), self.noise.weight.float())
        scale = functional.softplus(raw_scale) + self.noise_epsilon
        normal = torch.randn(clean.shape, generator=self.generator, device="cpu").to(clean.device)
        self.drawn = NoisyLogits(clean + normal * scale, clean, scale)
        return self.drawn.noisy

    def losses(
        self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int = 1
    ) -> dict[str, Float[Tensor, ""]]:
        found = super().losses(logits, routing, num_sequences)
        # the graph of a step must not live on in the next
        self.drawn = None
        return found

    def balance(self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int) -> Float[Tensor, ""]:
        """CV(importance)^2 + CV(load)^2, equations 7 and 11, with one weight for both."""
        drawn = self.drawn
        if drawn is not None and drawn.noisy is logits and self.top_k < self.num_experts:
            load = smooth_load(drawn, self.top_k)
        else:
            load = count_tokens(routing.expert_indices, self.num_experts).to(logits.dtype)
        parts = total_over_ranks(importance(routing)), total_over_ranks(load)
        return squared_variation(parts[0]) + squared_variation(parts[1])

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


def importance(routing: Routing) -> Float[Tensor, " E"]:
    """Sum over tokens of each expert's weight (E,): equation 6."""
    weights, chosen = routing.expert_weights, routing.expert_indices
    zeros = torch.zeros_like(routing.scores)
    return zeros.scatter_add(1, chosen.clamp(min=0), weights).sum(0)


def smooth_load(drawn: NoisyLogits, top_k: int) -> Float[Tensor, " E"]:
    """Expected number of tokens of each expert (E,) if its noise alone were drawn again: equations 8-10; needs K < E.

    An expert that is among the K best must still beat the (K+1)-th best, any other the K-th best.
    """
    best = drawn.noisy.topk(top_k + 1, dim=-1).values
    kth, next_one = best[:, -2:-1], best[:, -1:]
    threshold = torch.where(drawn.noisy > next_one, next_one, kth)
    return torch.special.ndtr((drawn.clean - threshold) / drawn.scale).sum(0)
