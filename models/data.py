"""Text for Lightning: a training stream that resumes exactly in the middle, and fixed held-out batches.

`models.stream` makes every batch a pure function of (seed, t, rank, world size), so the only state is t.
Lightning keeps it in each checkpoint because the loader has `state_dict` and `load_state_dict`, and restores
it on `trainer.fit(ckpt_path=...)`: no batch comes twice and none is left out, whether the checkpoint was
written at the end of a batch, after validation, or when a step failed, and at whatever world size the run
goes on.

With gradient accumulation save at optimizer steps, as Lightning's ModelCheckpoint does: a checkpoint holds no
gradients, so one written between two steps loses those of the micro-batches since the last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
from jaxtyping import Int64
from torch import Tensor

from models.corpus import Corpus, load_corpus
from models.stream import FRESH, Batch, Blocks, TokenStream

__all__ = ["Batch", "Corpus", "HeldOutLoader", "StreamLoader", "TextDataModule", "load_corpus"]


class StreamLoader:
    """`num_batches` batches of a stream for one rank, with the state that Lightning saves and restores.

    A second iteration goes on where the first ended; one from a restored state ends where the uninterrupted
    one would have.

    Args:
        identity: what the stream depends on; a state of another identity is refused.
        in_flight: how many batches were handed out and not trained on: 1 when a checkpoint is written because
            a step failed (that batch comes again), 0 at the end of a batch.
    """

    def __init__(
        self,
        stream: TokenStream,
        num_batches: int,
        identity: Mapping[str, int | str],
        rank: int = 0,
        world_size: int = 1,
        in_flight: Callable[[], int] = lambda: 0,
    ) -> None:
        self._stream = stream
        self._num_batches = num_batches
        self._identity = dict(identity)
        self._rank, self._world_size = rank, world_size
        self._in_flight = in_flight
        self._next = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        end = (self._next // self._num_batches + 1) * self._num_batches
        while self._next < end:
            # counted before the yield: a checkpoint written after this batch's step goes on with the next
            self._next += 1
            yield self._stream.batch(self._next - 1, self._rank, self._world_size)

    def state_dict(self) -> dict[str, int | str]:
        """The index of the next batch and the stream's identity, the same on every rank."""
        return {"next_batch": self._next - self._in_flight(), **self._identity}

    def load_state_dict(self, state_dict: Mapping[str, int | str]) -> None:
        """Raises ValueError if the state is of another text, batch size, sequence length or seed."""
        saved = {key: state_dict.get(key) for key in self._identity}
        if saved != self._identity:
            raise ValueError(f"the checkpoint's data stream is {saved}, this run's is {self._identity}")
        self._next = int(state_dict["next_batch"])


class HeldOutLoader:
    """Fixed held-out batches for one rank: `sequences_per_batch` over all ranks, fewer in the last."""

    def __init__(
        self,
        blocks: Blocks,
        index: Int64[np.ndarray, " sequences"],
        sequences_per_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises ValueError if the sequences cannot be dealt evenly to the ranks."""
        if len(index) % world_size:
            raise ValueError(f"{len(index)} held-out sequences cannot be dealt evenly to {world_size} ranks")
        self._blocks = blocks
        self._batches = [
            index[first : first + sequences_per_batch][rank::world_size]
            for first in range(0, len(index), sequences_per_batch)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self._blocks.batch(index) for index in self._batches)


class TextDataModule(L.LightningDataModule):
    """Training stream and held-out batches of a text corpus.

    Args:
        root: folder of the corpus (`data/text`, or `outputs/corpus/full` after `make corpus`).
        tokenizer: path of the tokenizer's JSON file.
        sequence_length: S, predictions a sequence; a sequence is S+1 tokens.
        sequences_per_batch: B, over all ranks; gradient accumulation takes several such batches a step.
        seed: of the order of the training text.
        num_batches: length of the run, and of one Lightning epoch, in such batches.
        cache: folder of token arrays, made if it is missing.
        domains: names of the domains to use, in this order; None takes all.
        val_sequences_per_domain: at most so many held-out sequences, the same number of each domain.

    Raises:
        ValueError: a value that does not fit the data or the world size, named in the message.
        FileNotFoundError: the corpus or the tokenizer is missing.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: str | Path,
        sequence_length: int,
        sequences_per_batch: int,
        seed: int,
        num_batches: int,
        cache: str | Path = "outputs/cache",
        domains: Sequence[str] | None = None,
        val_sequences_per_domain: int = 32,
    ) -> None:
        super().__init__()
        self.root, self.tokenizer, self.cache = Path(root), Path(tokenizer), Path(cache)
        self.sequence_length = sequence_length
        self.sequences_per_batch = _at_least(1, "sequences_per_batch", sequences_per_batch)
        self.seed = _at_least(0, "seed", seed)
        self.num_batches = _at_least(1, "num_batches", num_batches)
        self.val_sequences_per_domain = _at_least(1, "val_sequences_per_domain", val_sequences_per_domain)
        self._chosen_domains = domains

    def prepare_data(self) -> None:
        """Fills the cache, on one rank of a machine, before the others read it."""
        load_corpus(self.root, self.tokenizer, self.cache, self._chosen_domains)

    def train_dataloader(self) -> StreamLoader:
        """This rank's part of the training stream, from batch 0 on unless Lightning restores a state."""
        stream = TokenStream(self._blocks, self.sequences_per_batch, self.seed)
        identity = {
            "fingerprint": self.fingerprint,
            "sequence_length": self.sequence_length,
            "sequences_per_batch": self.sequences_per_batch,
            "seed": self.seed,
        }
        return StreamLoader(stream, self.num_batches, identity, *self._rank_and_world_size(), self._in_flight)

    def val_dataloader(self) -> HeldOutLoader:
        """This rank's part of the held-out sequences, domains in turn, always the same in the same order."""
        per_domain = min(self.val_sequences_per_domain, int(self._held_out_blocks.counts.min()))
        index = self._held_out_blocks.balanced(per_domain)
        place = self._rank_and_world_size()
        return HeldOutLoader(self._held_out_blocks, index, self.sequences_per_batch, *place)

    def probe_batch(self, num_sequences: int) -> Int64[Tensor, "num_sequences window"]:
        """Held-out tokens, always the same, on every rank; row i is of domain i modulo their number."""
        per_domain, rest = divmod(num_sequences, len(self.domains))
        if rest:
            raise ValueError(f"num_sequences={num_sequences} is no multiple of {len(self.domains)} domains")
        return self._held_out_blocks.batch(self._held_out_blocks.balanced(per_domain))["tokens"]

    def fresh_batches(self, first: int, num_batches: int) -> Iterator[Batch]:
        """This rank's part of batches [first, first + num_batches) of another order of the training text.

        For noise floors: batches of the training distribution, drawn independently of those trained on.
        """
        rank, world_size = self._rank_and_world_size()
        stream = TokenStream(self._blocks, self.sequences_per_batch, self.seed, FRESH)
        return (stream.batch(index, rank, world_size) for index in range(first, first + num_batches))

    def sampled_batches(self, text: str, num_batches: int, seed: int) -> Iterator[Batch]:
        """Whole batches of "held_out" or "train" text, the same on every rank and in every run: drawn by `seed` alone.

        Sequences come in a random order; none twice before all came once.
        """
        blocks = {"held_out": self._held_out_blocks, "train": self._blocks}
        if text not in blocks:
            raise ValueError(f"text={text!r} is neither held_out nor train")
        stream = TokenStream(blocks[text], self.sequences_per_batch, _at_least(0, "seed", seed), FRESH)
        return (stream.batch(index) for index in range(_at_least(1, "num_batches", num_batches)))

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.root, self.tokenizer, self.cache, self._chosen_domains)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, which a batch's `domain` counts from 0."""
        return self.corpus.domains

    @property
    def vocab_size(self) -> int:
        return self.corpus.vocab_size

    @property
    def fingerprint(self) -> str:
        """sha256 of texts, tokenizer, split and choice of domains."""
        return self.corpus.fingerprint

    @property
    def num_blocks(self) -> int:
        """Training sequences in one pass through the text."""
        return len(self._blocks)

    @property
    def epochs(self) -> float:
        """How often the run passes through the training text."""
        return self.num_batches * self.sequences_per_batch / self.num_blocks

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.corpus.train, self.sequence_length)

    @cached_property
    def _held_out_blocks(self) -> Blocks:
        return Blocks(self.corpus.held_out, self.sequence_length)

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        world_size = self.trainer.world_size
        if self.sequences_per_batch % world_size:
            raise ValueError(f"sequences_per_batch={self.sequences_per_batch} is not divisible by {world_size} ranks")
        return self.trainer.global_rank, world_size

    def _in_flight(self) -> int:
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready - progress.processed  # pyright: ignore[reportAttributeAccessIssue]


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ValueError(f"{name}={value}: at least {least} is needed")
    return value
