"""Tokens a second through one MoE layer, forward and backward: ours beside Hugging Face's Qwen2-MoE block.

Both compute the same function with the same weights; what is left out of their block, and how loads are drawn, says
benchmarks/layer_steps.py. Medians with intervals of paired steps, and all sizes: python -m benchmarks.layer_speed.
"""

import jaxtyping
import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.layer_speed import TOLERANCE, step_peak_bytes
from benchmarks.layer_steps import Size, build, difference

SIZES = [
    Size(64, 16, 2048, 2, "zipf"),
    Size(64, 64, 8192, 4, "uniform"),
    Size(256, 16, 4096, 2, "zipf"),
    Size(512, 8, 2048, 2, "uniform"),
]


@pytest.fixture(autouse=True)
def as_in_training(monkeypatch):
    """No shape checks, one thread, no oneDNN cache of a primitive for every expert size (benchmarks/train.py)."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.set_num_threads(1)


@pytest.mark.parametrize("size", SIZES, ids=str)
# batched_mm, fifty times slower, is left to benchmarks.layer_speed
@pytest.mark.parametrize("variant", ["ours", "plain", "grouped_mm", "eager"])
def test_forward_and_backward(benchmark, size, variant):
    benchmark.group = str(size)
    steps = build(size)
    assert difference(steps[variant], steps["ours"]) <= TOLERANCE
    peaks = [step_peak_bytes(steps[name]) for name in ("ours", variant)]
    assert peaks[0] <= peaks[1]
    out_TD = benchmark(steps[variant])
    assert out_TD.shape == (size.num_tokens, size.dim)
    if benchmark.enabled:
        rate = round(size.num_tokens / benchmark.stats.stats.median)
        benchmark.extra_info |= {"tokens_per_second": rate, "peak_bytes": peaks[1]}
        print(f"\n{benchmark.group}, {variant}: {rate:,} tokens/s forward and backward, {peaks[1] / 1e6:.0f} MB")
