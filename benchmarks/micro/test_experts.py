"""Tokens a second through one layer's experts, forward and backward: loop and grouped side by side."""

import jaxtyping
import numpy as np
import pytest
import torch

from models.experts import Experts, GroupedExperts, LoopExperts

NUM_PAIRS = 4096
SIZES = {"D64_F128_E16": (16, 64, 128), "D64_F128_E64": (64, 64, 128), "D256_F512_E16": (16, 256, 512)}


@pytest.fixture(autouse=True)
def as_in_training(monkeypatch):
    """No shape checks, one thread, no oneDNN cache of a primitive for every expert size (benchmarks/train.py)."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.set_num_threads(1)


def loads(kind: str, num_experts: int) -> torch.Tensor:
    """Tokens of each expert: all the same, or as 1 / rank."""
    share = 1 / np.arange(1, num_experts + 1) ** {"uniform": 0.0, "zipf": 1.0}[kind]
    return torch.from_numpy(np.random.default_rng(0).multinomial(NUM_PAIRS, share / share.sum()))


def step(experts: Experts, x_ND: torch.Tensor, tokens_per_expert: torch.Tensor) -> torch.Tensor:
    """Forward and backward; returns the gradient of the rows."""
    experts.zero_grad()
    x_ND.grad = None
    experts(x_ND, tokens_per_expert).sum().backward()
    assert x_ND.grad is not None
    return x_ND.grad


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts])
def test_forward_and_backward(benchmark, size, kind, backend):
    num_experts, dim, hidden_dim = SIZES[size]
    benchmark.group = f"experts {size} {kind}"
    x_ND = torch.randn(NUM_PAIRS, dim, requires_grad=True)
    gradient = benchmark(step, backend(num_experts, dim, hidden_dim), x_ND, loads(kind, num_experts))
    assert gradient.shape == x_ND.shape
    if benchmark.enabled:
        rate = round(NUM_PAIRS / benchmark.stats.stats.median)
        benchmark.extra_info["tokens_per_second"] = rate
        print(f"\n{benchmark.group}, {backend.__name__}: {rate:,} routed tokens/s forward and backward")
