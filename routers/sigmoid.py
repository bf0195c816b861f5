"""Sigmoid top-k routing, the gate of DeepSeek-V3 (DeepSeek-AI, 2024, arXiv 2412.19437, equations 13-15): experts are
scored one by one instead of against one another, and the chosen experts' scores are divided by their sum."""

from jaxtyping import Float
from torch import Tensor

from routers.base import Routing
from routers.topk import TopK


class Sigmoid(TopK):
    """The K experts with the highest sigmoid scores; without a bias the same choice as softmax top-k."""

    def score(self, logits: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        return logits.sigmoid()

    def losses(
        self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int = 1
    ) -> dict[str, Float[Tensor, ""]]:
        # equations 19 and 20: the balance loss sees scores that sum to 1 over all experts
        normalised = routing.scores / routing.scores.sum(-1, keepdim=True)
        return super().losses(logits, routing._replace(scores=normalised), num_sequences)
