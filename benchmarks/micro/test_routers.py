"""Each router's own cost a token, and its share of an MoE layer's forward: E = 32, K = 4, D = 64, F = 64, T = 2,048."""

import time
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from models.dispatch import LocalDispatcher
from models.experts import GroupedExperts
from models.moe import MoELayer
from routers.base import Router

E, K, D, F, T = 32, 4, 64, 64, 2048
CONF = Path(__file__).parents[2] / "conf" / "router"
CASES = [
    pytest.param(path, num_devices, id=f"{path.stem}-{num_devices}_devices" if num_devices else path.stem)
    for path in sorted(CONF.glob("*.yaml"))
    for num_devices in ([4, 8] if "num_devices" in OmegaConf.load(path) else [None])
]


@pytest.fixture(autouse=True)
def as_in_training(monkeypatch):
    """No shape checks, one thread, no oneDNN cache of a primitive for every expert size (benchmarks/train.py)."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.set_num_threads(1)


def build(path: Path, num_devices: int | None) -> Router:
    config = OmegaConf.create({"seed": 0, "router": OmegaConf.load(path)})
    given: dict[str, object] = {} if num_devices is None else {"num_devices": num_devices}
    if "collaboration" in config.router:
        upper = np.triu(np.random.default_rng(0).integers(1, 50, (1, E, E)), k=1)
        given["collaboration"] = upper + upper.transpose(0, 2, 1)
    return instantiate(config.router, top_k=K, **given)(D, E, 0)


@pytest.mark.parametrize(("path", "num_devices"), CASES)
def test_forward(benchmark, path, num_devices):
    benchmark.group = "routers"
    router = build(path, num_devices)
    layer = MoELayer(router, GroupedExperts(E, D, F), LocalDispatcher())
    x_TD, token_ids = torch.randn(T, D), torch.randint(2048, (T,))
    with torch.no_grad():
        routing = benchmark(router, x_TD, token_ids)
        assert routing.expert_indices.shape == (T, router.num_choices)
        if benchmark.enabled:
            # the fastest of each: what else runs on the machine must not look like a share
            own, whole = benchmark.stats.stats.min, min(_seconds(lambda: layer(x_TD, token_ids)) for _ in range(20))
            benchmark.extra_info["nanoseconds_per_token"] = own / T * 1e9
            benchmark.extra_info["share_of_layer"] = own / whole
            print(f"\n{benchmark.name}: {own / T * 1e9:,.0f} ns a token, {own / whole:.0%} of the MoE layer's forward")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
