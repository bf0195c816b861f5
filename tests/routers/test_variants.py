"""Every variant in conf/router/variant composes over the router it varies, and builds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[2] / "conf"
VARIANTS = sorted((CONF / "router" / "variant").glob("*.yaml"))
D, E, T, K = 16, 32, 24, 4
COLLABORATION = np.triu(np.random.default_rng(0).integers(1, 50, (1, E, E)), k=1)
COLLABORATION += COLLABORATION.transpose(0, 2, 1)


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[[str], DictConfig]]:
    with initialize_config_dir(str(CONF), version_base=None):
        yield lambda name: compose("train", [f"router=variant/{name}"])


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variant_composes_and_routes(composed, path):
    router = composed(path.stem).router
    changed = {key: value for key, value in OmegaConf.load(path).items() if key != "defaults"}
    assert changed.items() <= dict(router).items()
    given = {"collaboration": COLLABORATION} if "collaboration" in router else {}
    # a list of T partners is enough for T + 1 experts a token
    top_k = min(K, router.get("top_t", E) + 1)
    routing = instantiate(router, top_k=top_k, **given)(D, E, 0)(torch.randn(T, D))
    assert routing.expert_indices.shape == (T, top_k)


def test_there_are_variants():
    assert {"c2r_t3", "cost_0.2", "drop_0.2", "device_limited_2"} <= {path.stem for path in VARIANTS}
