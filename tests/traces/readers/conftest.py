"""Fixtures that the tests of the readers share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from traces.foreign import read_foreign


@pytest.fixture(scope="session")
def make_choices() -> Callable[[int], tuple[np.ndarray, int]]:
    """Choices (L, T, K) of E experts, all four sizes random."""

    def make(seed: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(seed)
        num_layers, num_tokens, num_experts = rng.integers(1, [13, 9, 10])
        order = np.broadcast_to(np.arange(num_experts), (num_layers, num_tokens, num_experts))
        return rng.permuted(order, axis=-1)[..., : rng.integers(1, num_experts + 1)], int(num_experts)

    return make


@pytest.fixture(scope="session")
def count() -> Callable[[np.ndarray, int], np.ndarray]:
    """Loads (L, E) of choices (L, T, K)."""

    def count_layers(chosen_LTK: np.ndarray, num_experts: int) -> np.ndarray:
        return np.stack([np.bincount(layer.ravel(), minlength=num_experts) for layer in chosen_LTK])

    return count_layers


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """Reading ends in one `ValueError` of one line that names the path."""

    def check(path: Path, reason: str, **options: int) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            read_foreign(path, **options)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    return check
