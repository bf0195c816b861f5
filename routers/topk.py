"""Softmax top-k routing (Shazeer et al., 2017, arXiv 1701.06538; load-balance loss of Fedus et al., 2021, arXiv
2101.03961): the K best-scored experts of each token."""

from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Router


class TopK(Router):
    """The K best-scored experts of each token."""

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        return scores.topk(self.top_k, dim=-1).indices
