"""Switch routing (Fedus et al., 2021, arXiv 2101.03961): one expert a token, weighted by its softmax score, and
tokens dropped beyond 1.25 times an expert's even share.

Switch is top-1. Ours: the same rule for any K. The paper's multiplicative jitter of the gate's input is left out.
"""

from typing import Any

from routers.topk import TopK


class Switch(TopK):
    """Top-k with a capacity of its own; the score itself is the weight, or a top-1 gate would get no gradient.

    Args:
        capacity_factor: tokens an expert may take, over its even share.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        capacity_factor: float | None = 1.25,
        renormalise: bool = False,
        **gate: Any,
    ) -> None:
        super().__init__(dim, num_experts, layer, capacity_factor=capacity_factor, renormalise=renormalise, **gate)
