"""Small traces for the predictors' tests."""

from collections.abc import Callable

import numpy as np
import pytest

from traces.load import LoadTrace, TraceSource

TOKENS, TOP_K = 512, 2


def build_trace(tokens: np.ndarray, seed: int = 0) -> LoadTrace:
    """Wrap counts as a trace."""
    source = TraceSource("toy", "topk", seed, TOKENS, TOP_K, data_fingerprint="none", version="0")
    return LoadTrace(step=np.arange(len(tokens)), tokens=tokens, source=source)


def drifting_counts(num_steps: int, num_layers: int, num_experts: int, seed: int) -> np.ndarray:
    """Multinomial counts around a random walk of log loads."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.3, (num_layers, num_experts)) + 0.01 * np.cumsum(
        rng.normal(size=(num_steps, num_layers, num_experts)), axis=0
    )
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return rng.multinomial(TOKENS * TOP_K, share)


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., LoadTrace]:
    """(num_steps, num_layers, num_experts, seed) -> trace of slowly drifting loads."""

    def make(num_steps: int = 300, num_layers: int = 2, num_experts: int = 8, seed: int = 0) -> LoadTrace:
        return build_trace(drifting_counts(num_steps, num_layers, num_experts, seed), seed)

    return make


@pytest.fixture(scope="session")
def as_trace() -> Callable[[np.ndarray], LoadTrace]:
    """Counts -> trace."""
    return build_trace
