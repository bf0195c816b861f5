"""Tokens that each choose K distinct experts, so that expert e gets share p_e of all choices in expectation (to 1e-6).

Conditional Poisson sampling (Hajek, 1964, Ann. Math. Stat. 35; Chen, Dempster and Liu, 1994, Biometrika 81): a K-set
has a probability proportional to the product of its experts' odds, the law of most entropy with these shares. The K
largest of log p + Gumbel noise, the other common choice, flatten the shares when K > 1, and their counts cannot be had
without drawing every token; here a walk over the experts draws E * K binomials, however many tokens there are.

The walk: a token that still has k choices to make when it comes to expert e takes it with a chance that depends on
(e, k) alone. Chances have shape (E, K + 1, *B), with any rows B.
"""

import numpy as np
from jaxtyping import Float, Int

# of shares K p: far below what drawing any number of tokens could show
TOLERANCE = 1e-6
# a full step swings between two sides where K or E - K is small; with this one at most 14 rounds were seen
STEP = 0.7
MOST_ROUNDS = 100
# number of choices a token, far below TOLERANCE and far above rounding
NEGLIGIBLE = 1e-12
# how near an expert may come to being in every set, as a part of the way from K / E to 1
LIMIT = 0.99


def feasible(proportion: Float[np.ndarray, "*B E"], top_k: int) -> Float[np.ndarray, "*B E"]:
    """The nearest shares that K distinct experts a token can have: none above 1 / K, and zero stays zero.

    What is cut off goes to the other experts in proportion to theirs. The cap is a little below 1 / K, so that odds
    stay finite.

    Raises:
        ValueError: proportions are negative or do not sum to one, or a row has not more than K experts above zero.
    """
    if not (proportion.min() >= 0 and np.allclose(proportion.sum(-1), 1)):
        raise ValueError("proportions must not be negative and must sum to 1 over the experts")
    num_active = (proportion > 0).sum(-1, keepdims=True)
    if num_active.min() <= top_k:
        raise ValueError(f"top_k {top_k} needs more than {top_k} experts with a share, got {num_active.min()}")
    even = top_k / num_active
    cap = even + LIMIT * (1 - even)
    chosen = proportion * top_k
    # each round caps at least one more expert, or ends
    while (chosen > cap * (1 + 1e-12)).any():
        capped = chosen >= cap
        free = np.where(capped, 0, chosen)
        scale = (top_k - (cap * capped).sum(-1, keepdims=True)) / np.maximum(free.sum(-1, keepdims=True), 1e-300)
        chosen = np.where(capped, cap, free * scale)
    return chosen / top_k


def chances(proportion: Float[np.ndarray, "*B E"], top_k: int) -> Float[np.ndarray, "E k *B"]:
    """Chances of the walk whose tokens have these shares, which must be feasible; k = K + 1 numbers of choices left."""
    chosen = proportion * top_k
    with np.errstate(divide="ignore"):
        log_odds = _log_odds(chosen)
    for _ in range(MOST_ROUNDS):
        walk = _walk(np.exp(log_odds - log_odds.max(-1, keepdims=True)), top_k)
        found = expected(walk) * top_k
        if np.abs(found - chosen).max() < TOLERANCE:
            return walk
        # what is negligible keeps its odds: of a share below rounding, what was found is noise
        change = _log_odds(np.clip(chosen, NEGLIGIBLE, None)) - _log_odds(np.clip(found, NEGLIGIBLE, 1 - NEGLIGIBLE))
        log_odds = log_odds + STEP * change
    raise AssertionError(f"odds for top_k {top_k} and shares up to {proportion.max()} were not found")


def expected(walk: Float[np.ndarray, "E k *B"]) -> Float[np.ndarray, "*B E"]:
    """Share of all choices that falls on each expert."""
    waiting = np.zeros(walk.shape[1:])
    waiting[-1] = 1.0
    taken = np.stack([_move(waiting, waiting[1:] * chance[1:]) for chance in walk], axis=-1)
    return taken / (walk.shape[1] - 1)


def draw_counts(
    walk: Float[np.ndarray, "E k *B"], num_tokens: int, rng: np.random.Generator
) -> Int[np.ndarray, "*B E"]:
    """Tokens of each expert, without drawing the tokens: exactly as if `draw_choices` were counted."""
    waiting = np.zeros(walk.shape[1:], np.int64)
    waiting[-1] = num_tokens
    return np.stack([_move(waiting, rng.binomial(waiting[1:], chance[1:])) for chance in walk], axis=-1)


def draw_choices(
    walk: Float[np.ndarray, "E k L"], num_tokens: int, rng: np.random.Generator
) -> Int[np.ndarray, "L T K"]:
    """The experts of each token in rising order."""
    top_k = walk.shape[1] - 1
    left_LT = np.full((walk.shape[2], num_tokens), top_k)
    chosen_LTK = np.empty((*left_LT.shape, top_k), np.int16)
    for expert, chance_kL in enumerate(walk):
        taken_LT = rng.random(left_LT.shape) < np.take_along_axis(chance_kL.T, left_LT, axis=1)
        layer, token = np.nonzero(taken_LT)
        chosen_LTK[layer, token, top_k - left_LT[layer, token]] = expert
        left_LT -= taken_LT
    assert not left_LT.any(), "a token found fewer than K experts"
    return chosen_LTK


def _move(waiting: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Tokens that took an expert have one choice less to make; returns how many took it."""
    waiting[1:] -= taken
    waiting[:-1] += taken
    return np.asarray(taken.sum(0))


def _log_odds(chosen: Float[np.ndarray, "*B E"]) -> Float[np.ndarray, "*B E"]:
    """Of being chosen: those of independent choices, where the search for the right ones starts."""
    return np.log(chosen) - np.log1p(-chosen)


def _walk(odds: Float[np.ndarray, "*B E"], top_k: int) -> Float[np.ndarray, "E k *B"]:
    """Chance of (e, k): of all k-sets of experts e, e + 1, ..., weighted by their odds, the part that holds e."""
    num_experts = odds.shape[-1]
    # sets[e, k]: weight of all k-sets of the experts from e on, elementary symmetric polynomials of their odds
    sets = np.zeros((num_experts + 1, top_k + 1, *odds.shape[:-1]))
    sets[:, 0] = 1.0
    walk = np.zeros((num_experts, top_k + 1, *odds.shape[:-1]))
    for expert in reversed(range(num_experts)):
        taking = odds[..., expert] * sets[expert + 1, :-1]
        sets[expert, 1:] = sets[expert + 1, 1:] + taking
        np.divide(taking, sets[expert, 1:], out=walk[expert, 1:], where=sets[expert, 1:] > 0)
    return walk
