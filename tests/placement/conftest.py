"""Fixtures that the tests of placement share."""

from collections.abc import Callable

import numpy as np
import pytest

from traces.load import TraceSource
from traces.routing import RoutingTrace


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., RoutingTrace]:
    """A trace of given choices (S, L, T, K); all tokens start on device 0 unless told otherwise."""

    def make(chosen: np.ndarray, num_experts: int, source_device: np.ndarray | None = None) -> RoutingTrace:
        num_steps, _, num_tokens, top_k = chosen.shape
        source = TraceSource("nano", "topk", 0, num_tokens, top_k, "abc", "0.1.0")
        starts = np.zeros(num_tokens, np.int16) if source_device is None else source_device
        return RoutingTrace(np.arange(num_steps), chosen, starts, num_experts, source)

    return make


@pytest.fixture(scope="session")
def make_choices() -> Callable[..., np.ndarray]:
    """Choices (T, K) of experts in clusters (E,): a token prefers one cluster, more so the stronger it is."""

    def make(rng: np.random.Generator, cluster: np.ndarray, num_tokens: int, top_k: int, strength: float = 2.0):
        own = rng.choice(cluster, num_tokens)[:, None] == cluster
        preference = strength * own + rng.gumbel(size=own.shape) + rng.normal(size=len(cluster)) / 2
        return np.argsort(-preference, axis=1)[:, :top_k].astype(np.int16)

    return make
