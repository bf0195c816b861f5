"""Softmax top-k routing that is balanced within each sequence (DeepSeek-AI, 2024, arXiv 2412.19437, equations 17-20):
the sequence-wise loss of DeepSeek-V2 and V3."""

from jaxtyping import Float
from torch import Tensor

from routers.base import Routing
from routers.losses import sequence_balance_loss
from routers.topk import TopK


class TopKSequence(TopK):
    """Top-k whose load-balance loss is taken per sequence and averaged."""

    def balance(self, logits: Float[Tensor, "T E"], routing: Routing, num_sequences: int) -> Float[Tensor, ""]:
        return sequence_balance_loss(routing.scores, routing.expert_indices, num_sequences)
