"""Random lists, the control of C2R (ours): as many partners an expert, drawn instead of profiled. What C2R gains over
it is due to which experts work together."""

from typing import Any

import numpy as np

from routers.c2r import ListLimited


class RandomLists(ListLimited):
    """Each expert's T partners are drawn once from all others, independently by layer and seed.

    Args:
        top_t: T, length of each list, at least K - 1.
        seed: seed of the lists.

    Raises:
        ValueError: T outside max(1, K-1)..E-1.
    """

    def __init__(self, dim: int, num_experts: int, layer: int, *, top_t: int = 8, seed: int = 0, **gate: Any) -> None:
        if not 1 <= top_t < num_experts:
            raise ValueError(f"top_t is {top_t}; with {num_experts} experts it must lie in 1..{num_experts - 1}")
        drawn_EE = np.random.default_rng((seed, layer)).random((num_experts, num_experts))
        # a draw above all others puts the expert itself last
        np.fill_diagonal(drawn_EE, 2.0)
        super().__init__(dim, num_experts, layer, lists=drawn_EE.argsort(-1)[:, :top_t], **gate)
