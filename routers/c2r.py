"""Collaboration-constrained routing, C2R (Zhang et al., 2025, arXiv 2504.01337): a token's experts beyond the first
come from the list of those that the first one works with most.

Both published weightings [C] are the base class's `renormalise`: true is a softmax over the kept logits only, as in the
authors' LLaMA-MoE (softmax scores divided by their sum over the kept are just that); false is the full softmax's values
of the kept experts, as in their Qwen-MoE.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from routers.base import Router
from traces.collaboration import top_lists

Collaboration = Integer[np.ndarray, "L E E"]


class ListLimited(Router):
    """The top-1 expert i, and the K - 1 best-scored of a list of T partners of i.

    Args:
        lists: (E, T) partners of each expert, itself not among them. T = E - 1 is top-k.

    Raises:
        ValueError: T is below K - 1.
    """

    allowed: Bool[Tensor, "E E"]

    def __init__(
        self, dim: int, num_experts: int, layer: int, *, lists: Integer[np.ndarray, "E T"], **gate: Any
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        top_t = lists.shape[1]
        if top_t < self.top_k - 1:
            raise ValueError(f"top_t is {top_t}; top_k = {self.top_k} experts a token need lists of {self.top_k - 1}")
        allowed_EE = torch.eye(num_experts, dtype=torch.bool).scatter(1, torch.from_numpy(lists), True)
        self.register_buffer("allowed", allowed_EE)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        allowed_TE = self.allowed[scores.argmax(-1)]
        return scores.masked_fill(~allowed_TE, -torch.inf).topk(self.top_k, dim=-1).indices


class C2R(ListLimited):
    """Partners are Top-T(i), the T most co-activated with i in a profile.

    T bounds a list, not devices: lists overlap. The authors' special case of T = 1, where the two first collaborators
    are used [C], is not built.

    Args:
        top_t: T, length of each list, at least K - 1.
        collaboration: (L, E, E) tokens that chose both experts, or the path of a profile (.npz) that holds it; row
            `layer` is used.

    Raises:
        ValueError: no profile, one of another model's shape or with an expert that works with none, or a T outside
            max(1, K-1)..E-1.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        top_t: int = 8,
        collaboration: Collaboration | str | Path | None = None,
        **gate: Any,
    ) -> None:
        counts_LEE = _checked(_read(collaboration), num_experts, layer)
        super().__init__(dim, num_experts, layer, lists=top_lists(counts_LEE, top_t)[layer], **gate)


def _read(collaboration: Collaboration | str | Path | None) -> Collaboration:
    if collaboration is None:
        raise ValueError(
            "C2R needs a profile: set router.collaboration to the path of one, which `python -m benchmarks.profile` "
            "writes, got None"
        )
    if isinstance(collaboration, np.ndarray):
        return collaboration
    with np.load(collaboration, allow_pickle=False) as profile:
        if "collaboration" not in profile:
            raise ValueError(f"{collaboration} holds {sorted(profile)}, a profile holds collaboration")
        return profile["collaboration"]


def _checked(collaboration: Collaboration, num_experts: int, layer: int) -> Collaboration:
    shape = collaboration.shape
    if len(shape) != 3 or shape[1:] != (num_experts, num_experts) or layer >= shape[0]:
        raise ValueError(
            f"the profile has shape {shape}, layer {layer} of this model needs "
            f"(more than {layer}, {num_experts}, {num_experts})"
        )
    return collaboration
