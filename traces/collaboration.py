"""Which experts work together: Top-T partners, collaboration degree and paths from layer to layer.

Profile and Top-T lists as in C2R (Zhang et al., 2025, arXiv 2504.01337, authors' code); the paper names a
collaboration degree without a formula, so the entropy used here is ours.
"""

import numpy as np
from jaxtyping import Float, Int, Integer, Real

from traces.routing import RoutingTrace, one_hot


def top_lists(collaboration: Integer[np.ndarray, "L E E"], top_t: int) -> Int[np.ndarray, "L E T"]:
    """The Top-T list of each expert: its T most co-activated partners, the most frequent first.

    The expert itself is left out; of equal counts the lower expert number comes first.

    Args:
        collaboration: (L, E, E) tokens that chose both experts, as `RoutingTrace.collaboration`.
        top_t: T, length of a list.

    Raises:
        ValueError: T lies outside 1..E-1, the counts are no symmetric matrices without negative entries, or an
            expert was never chosen together with another.
    """
    _check_counts(collaboration)
    num_experts = collaboration.shape[-1]
    if not 1 <= top_t < num_experts:
        raise ValueError(f"top_t is {top_t}; with {num_experts} experts it must lie in 1..{num_experts - 1}")
    _check_active(collaboration)
    return ranked_partners(collaboration)[..., :top_t]


def ranked_partners(collaboration: Integer[np.ndarray, "L E E"]) -> Int[np.ndarray, "L E P"]:
    """All P = E - 1 partners of each expert in the order of `top_lists`, also of one that was never active."""
    num_experts = collaboration.shape[-1]
    partners_LEE = _without_self(collaboration).astype(np.int64)
    # -1 puts the expert itself behind every partner, even those that it never met
    partners_LEE[:, range(num_experts), range(num_experts)] = -1
    return np.argsort(-partners_LEE, axis=-1, kind="stable")[..., :-1]


def list_coverage(collaboration: Real[np.ndarray, "L E E"]) -> Float[np.ndarray, "L T"]:
    """Share of a layer's co-activations that Top-T lists admit, for T = 1..E-1: how little a list constrains.

    NaN where no two experts were chosen together.

    Raises:
        ValueError: the matrices are not square, or have negative entries.
    """
    _check_square(collaboration)
    # all but the smallest entry of a row: an expert's own is zero, and no other is below it
    descending_LET = -np.sort(-_without_self(collaboration), axis=-1)[..., :-1]
    admitted_LT = descending_LET.sum(1).cumsum(-1).astype(float)
    total_L = admitted_LT[:, -1:]
    return np.divide(admitted_LT, total_L, out=np.full(admitted_LT.shape, np.nan), where=total_L > 0)


def collaboration_degree(collaboration: Real[np.ndarray, "L E E"]) -> Float[np.ndarray, "L E"]:
    """How evenly an expert shares its tokens over its partners (formula ours): 1 evenly, 0 with one partner only.

    Entropy of the expert's row without itself, scaled to sum one, divided by log(E - 1): a specialised expert is low,
    an overly collaborative one high. NaN for an expert that was never chosen together with another.

    Raises:
        ValueError: the matrices are not square, have negative entries, or E is below 3.
    """
    _check_square(collaboration)
    if collaboration.shape[-1] < 3:
        raise ValueError(f"a collaboration degree needs at least 3 experts, got {collaboration.shape[-1]}")
    partners_LEE = _without_self(collaboration)
    total = partners_LEE.sum(-1, keepdims=True)
    share = np.divide(partners_LEE, total, out=np.full(partners_LEE.shape, np.nan), where=total > 0)
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = np.maximum(0.0, -(share * logarithm).sum(-1))
    return entropy / np.log(collaboration.shape[-1] - 1)


def independent_collaboration(loads: Real[np.ndarray, "L E"]) -> Float[np.ndarray, "L E E"]:
    """Co-activations of a router that ignores who fits whom (ours): the yardstick of a collaboration degree.

    Row i spreads expert i's load over the others in proportion to theirs.
    """
    others = loads.sum(-1, keepdims=True) - loads
    own = np.divide(loads, others, out=np.zeros(loads.shape), where=others > 0)
    return _without_self(own[:, :, None] * loads[:, None, :])


def transitions(trace: RoutingTrace) -> Int[np.ndarray, "P E E"]:
    """Tokens that chose expert i in a layer and expert j in the next one, over all sampled steps.

    One matrix for each of the P = L - 1 pairs of neighbouring layers; every pair of the two top-k sets counts,
    absent choices (-1) do not.
    """
    _, num_layers, _, _ = trace.expert_indices.shape
    counts_LEE = np.zeros((num_layers - 1, trace.num_experts, trace.num_experts), np.int64)
    # step by step: float32 counts exactly to 2^24 tokens, and a trace may hold more
    for chosen_LTK in trace.expert_indices:
        chosen_LTE = one_hot(chosen_LTK, trace.num_experts)
        counts_LEE += (chosen_LTE[:-1].transpose(0, 2, 1) @ chosen_LTE[1:]).astype(np.int64)
    return counts_LEE


def _without_self(collaboration: Real[np.ndarray, "L E E"]) -> Real[np.ndarray, "L E E"]:
    return np.where(np.eye(collaboration.shape[-1], dtype=bool), 0, collaboration)


def _check_square(collaboration: np.ndarray) -> None:
    if collaboration.ndim != 3 or collaboration.shape[1] != collaboration.shape[2]:
        raise ValueError(f"a collaboration profile needs counts (L, E, E), got {collaboration.shape}")
    if collaboration.size and collaboration.min() < 0:
        raise ValueError(f"co-activation counts must not be negative, got {collaboration.min()}")


def _check_counts(collaboration: np.ndarray) -> None:
    _check_square(collaboration)
    if not np.issubdtype(collaboration.dtype, np.integer):
        raise ValueError(f"a collaboration profile must hold integer counts, got {collaboration.dtype}")
    one_sided = np.argwhere(collaboration != collaboration.transpose(0, 2, 1))
    if len(one_sided):
        layer, i, j = one_sided[0]
        raise ValueError(
            f"co-activation counts must be symmetric: layer {layer} has {collaboration[layer, i, j]} for experts "
            f"({i}, {j}) and {collaboration[layer, j, i]} for ({j}, {i})"
        )


def _check_active(collaboration: np.ndarray) -> None:
    never = np.argwhere(_without_self(collaboration).sum(-1) == 0)
    if len(never):
        layer, expert = never[0]
        raise ValueError(
            f"expert {expert} of layer {layer} was never chosen together with another ({len(never)} such experts in "
            "all): profile more text, or the expert is dead"
        )
