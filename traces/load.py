"""The load trace: how many tokens each expert of each MoE layer got, step by step.

Load proportion as in Cong et al. (2024, arXiv 2404.16914): tokens routed to an expert divided by the tokens
routed in that layer and iteration, so a layer's proportions sum to one whatever K is.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int, Integer


@dataclass(frozen=True)
class TraceSource:
    """What produced a trace: enough to tell two traces apart and to compute their sampling floor."""

    model: str
    router: str
    seed: int
    tokens_per_step: int
    top_k: int
    data_fingerprint: str
    version: str

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class LoadTrace:
    """Loads of one run, counted before any token is dropped.

    Attributes:
        step: (S,) the training steps, strictly increasing.
        tokens: (S, L, E) routed token-expert pairs; a step of T tokens adds T * K to each layer when every
            token keeps K experts.
        source: what produced the trace.

    Raises:
        ValueError: shapes disagree, steps do not increase, counts are negative or not integers.
    """

    step: Int[np.ndarray, " S"]
    tokens: Integer[np.ndarray, "S L E"]
    source: TraceSource

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.step.shape != self.tokens.shape[:1]:
            raise ValueError(
                f"a load trace needs step (S,) and tokens (S, L, E); got {self.step.shape} and {self.tokens.shape}"
            )
        for name in ("step", "tokens"):
            if not np.issubdtype(getattr(self, name).dtype, np.integer):
                raise ValueError(f"{name} must hold integers, got {getattr(self, name).dtype}")
        if self.tokens.size and self.tokens.min() < 0:
            raise ValueError(f"token counts must not be negative, got {self.tokens.min()}")
        if np.any(np.diff(self.step) <= 0):
            raise ValueError(f"steps must increase strictly; they do not after step {self._first_disorder()}")

    def _first_disorder(self) -> int:
        return int(self.step[int(np.argmax(np.diff(self.step) <= 0))])

    @property
    def proportion(self) -> Float[np.ndarray, "S L E"]:
        """Share of a layer's routed tokens that each expert got; a layer that routed none is uniform."""
        return proportions(self.tokens)

    @property
    def num_layers(self) -> int:
        return self.tokens.shape[1]

    @property
    def num_experts(self) -> int:
        return self.tokens.shape[2]


def proportions(tokens: Integer[np.ndarray, "... E"]) -> Float[np.ndarray, "... E"]:
    """Divide counts by their sum over experts; rows without any token become uniform (1 / E)."""
    total = tokens.sum(-1, keepdims=True)
    uniform = 1.0 / tokens.shape[-1]
    return np.where(total > 0, tokens / np.maximum(total, 1), uniform)
