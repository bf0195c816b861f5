"""Fixtures that tests of several packages share."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from routers.base import Routing

# a slow minute of the machine fails no test
settings.register_profile("moelab", deadline=None)
settings.load_profile("moelab")


@pytest.fixture
def make_routing() -> Callable[..., Routing]:
    """A Routing of given choices (T, K): scores and weights are random, weight 0 where the choice is -1."""

    def make(expert_indices: torch.Tensor, num_experts: int, seed: int = 0) -> Routing:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(len(expert_indices), num_experts, generator=generator).softmax(-1)
        weights = torch.rand(expert_indices.shape, generator=generator) * (expert_indices >= 0)
        return Routing(scores, weights, expert_indices)

    return make
