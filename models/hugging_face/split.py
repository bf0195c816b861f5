"""Which neurons of a dense gated MLP become which expert.

The published ways: a random partition (LLaMA-MoE's best, Zhu et al., 2024, arXiv 2406.16554), neurons that fire
together in one expert (Zhang et al., 2022, MoEfication, arXiv 2110.01786), and the most important neurons shared by all
tokens with the rest dealt at random (as Qwen1.5-MoE's layout has it).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Split:
    """A partition of a layer's neurons.

    Attributes:
        shared: (N,) neurons that every token uses; none where N = 0.
        experts: (E, F) neurons of each expert.
    """

    shared: Int[np.ndarray, " N"]
    experts: Int[np.ndarray, "E F"]


def random_split(num_neurons: int, num_experts: int, rng: np.random.Generator) -> Split:
    """Neurons dealt at random.

    Raises:
        ValueError: neurons that cannot be dealt evenly.
    """
    width = expert_width(num_neurons, num_experts)
    return Split(np.empty(0, dtype=np.int64), rng.permutation(num_neurons).reshape(num_experts, width))


def shared_split(
    importance: Float[np.ndarray, " N"], num_shared: int, num_experts: int, rng: np.random.Generator
) -> Split:
    """The `num_shared` most important neurons for all tokens, the rest dealt at random.

    Args:
        importance: (N,) of each neuron, such as mean |activation| times the norm of its output weights.

    Raises:
        ValueError: more shared neurons than there are, or a rest that cannot be dealt evenly.
    """
    if not 0 <= num_shared < len(importance):
        raise ValueError(f"{num_shared} shared neurons of {len(importance)}: at least one expert must be left")
    order = np.argsort(-importance, kind="stable")
    rest = random_split(len(order) - num_shared, num_experts, rng).experts
    return Split(order[:num_shared], order[num_shared:][rest])


def clustered_split(activations: Float[np.ndarray, "T N"], num_experts: int, rng: np.random.Generator) -> Split:
    """Neurons that are active on the same tokens together: k-means of their activations, in clusters of equal size.

    Raises:
        ValueError: neurons that cannot be dealt evenly.
    """
    profile_NT = activations.T / np.maximum(np.linalg.norm(activations.T, axis=1, keepdims=True), 1e-12)
    width = expert_width(len(profile_NT), num_experts)
    centres_ET, _ = kmeans2(profile_NT, num_experts, minit="++", rng=rng)
    distance_NE = ((profile_NT[:, None] - centres_ET[None]) ** 2).sum(-1)
    # equal sizes: each expert is `width` places, and neurons are assigned to places
    _, place_N = linear_sum_assignment(np.repeat(distance_NE, width, axis=1))
    return Split(np.empty(0, dtype=np.int64), np.argsort(place_N).reshape(num_experts, width))


def expert_width(num_neurons: int, num_experts: int) -> int:
    """F, the neurons of an expert.

    Raises:
        ValueError: neurons that cannot be dealt evenly.
    """
    if num_experts < 1 or num_neurons % num_experts:
        raise ValueError(f"{num_neurons} neurons cannot be dealt evenly to {num_experts} experts")
    return num_neurons // num_experts
