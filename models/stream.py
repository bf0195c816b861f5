"""Token arrays to batches: windows of the text, and their endless shuffled stream.

Training windows of all domains are shuffled anew each epoch by (seed, epoch); the epochs follow one another
as one endless stream of rows. Global batch t is rows [t B, (t+1) B) of it, and rank r of W takes every W-th
of them from r on, so the ranks together see the batch that one rank alone would see: a batch is a pure
function of (seed, t, rank, world size).
"""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Int64, UInt16
from torch import Tensor

TRAINING, FRESH = 0, 1
"""Which of a seed's independent streams: the one trained on, and the one that noise is measured with."""


class Batch(TypedDict):
    """`tokens` (B, S+1), of which [:, :-1] is the input and [:, 1:] the target; `domain` (B,)."""

    tokens: Int64[Tensor, "B window"]
    domain: Int64[Tensor, " B"]


class Blocks:
    """The windows of S+1 tokens of several domains, numbered through, domain by domain.

    Windows of a domain start S tokens apart: the last token of one is the first of the next, so every token
    but a domain's first is a target exactly once. Windows run over document ends and never over domain ends;
    what is left at a domain's end is dropped.
    """

    def __init__(self, tokens: Mapping[str, UInt16[np.ndarray, " _"]], sequence_length: int) -> None:
        """Raises ValueError if `sequence_length` is below 1 or too long for some domain."""
        longest = min(len(array) for array in tokens.values()) - 1
        if not 1 <= sequence_length <= longest:
            sizes = {name: len(array) for name, array in tokens.items()}
            raise ValueError(f"sequence_length={sequence_length} does not fit domains of {sizes} tokens")
        self.counts = np.array([(len(array) - 1) // sequence_length for array in tokens.values()])
        self._domain = np.repeat(np.arange(len(tokens)), self.counts)
        self._tokens = np.concatenate(list(tokens.values()))
        ends = np.cumsum([len(array) for array in tokens.values()])
        begins = np.concatenate([[0], ends[:-1]])
        starts = [begin + sequence_length * np.arange(count) for begin, count in zip(begins, self.counts, strict=True)]
        self._start = np.concatenate(starts)
        self._window = np.arange(sequence_length + 1)

    def __len__(self) -> int:
        return len(self._start)

    def batch(self, index: Int64[np.ndarray, " B"]) -> Batch:
        """The windows numbered `index`."""
        tokens = self._tokens[self._start[index][:, None] + self._window].astype(np.int64)
        return Batch(tokens=torch.from_numpy(tokens), domain=torch.from_numpy(self._domain[index]))

    def balanced(self, per_domain: int) -> Int64[np.ndarray, " B"]:
        """Numbers of `per_domain` windows of each domain, spread evenly over it, cycling through the domains.

        Raises:
            ValueError: the smallest domain has fewer.
        """
        if not 1 <= per_domain <= self.counts.min():
            raise ValueError(f"{per_domain} sequences of each domain wanted, of 1 to {self.counts.min()}")
        first = np.cumsum(self.counts) - self.counts
        position = np.arange(per_domain)[:, None] * self.counts // per_domain
        return (first + position).reshape(-1)


class TokenStream:
    """The endless shuffled stream of rows over `blocks`, cut into batches of `sequences_per_batch`."""

    def __init__(self, blocks: Blocks, sequences_per_batch: int, seed: int, stream: int = TRAINING) -> None:
        self._blocks = blocks
        self._sequences_per_batch = sequences_per_batch
        self._seed = (seed, stream)
        self._permutations: dict[int, np.ndarray] = {}

    def batch(self, index: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Rank `rank`'s part of global batch `index`: every `world_size`-th of its sequences."""
        first = index * self._sequences_per_batch
        rows = np.arange(first + rank, first + self._sequences_per_batch, world_size)
        epochs, positions = np.divmod(rows, len(self._blocks))
        parts = [self._permutation(int(epoch))[positions[epochs == epoch]] for epoch in np.unique(epochs)]
        return self._blocks.batch(np.concatenate(parts))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # a batch may lie across two epochs; older ones are not needed again
            self._permutations = {old: order for old, order in self._permutations.items() if old == epoch - 1}
            generator = np.random.default_rng((*self._seed, epoch))
            self._permutations[epoch] = generator.permutation(len(self._blocks))
        return self._permutations[epoch]
