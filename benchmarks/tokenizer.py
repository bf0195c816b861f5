"""Trains the byte-level BPE tokenizers on the training split of the shipped text.

    python -m benchmarks.tokenizer        data/tokenizer/bpe_2k.json (2,048 tokens) and bpe_8k.json (8,192)

Held-out documents are not looked at. The same text gives the same files, byte for byte.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.corpus import SEPARATOR, read_documents, read_sources, split_documents
from traces.atomic import write_bytes_atomically

VOCABULARIES = {"bpe_2k.json": 2_048, "bpe_8k.json": 8_192}


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens; id 0 is the separator, ids 1 to 256 are the bytes.

    Raises:
        ValueError: `vocab_size` cannot hold the bytes, or the text is too small to fill it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size={vocab_size}: the separator and the {len(alphabet)} bytes need more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"vocab_size={vocab_size}: the text yields {tokenizer.get_vocab_size()} tokens only")
    return tokenizer


def training_documents(root: Path) -> Iterable[str]:
    """The training documents of every domain of the corpus at `root`."""
    for domain in read_sources(root):
        train, _ = split_documents(read_documents(root, domain), domain)
        yield from train


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    # one thread trains these in seconds, and does not compete with runs on the same machine
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizer", description="Trains the tokenizers on the shipped text."
    )
    parser.add_argument("--corpus", type=Path, default=Path("data/text"))
    parser.add_argument("--output", type=Path, default=Path("data/tokenizer"))
    options = parser.parse_args(arguments)
    for name, vocab_size in VOCABULARIES.items():
        tokenizer = train_tokenizer(training_documents(options.corpus), vocab_size)
        write_bytes_atomically(options.output / name, (tokenizer.to_str() + "\n").encode())
        print(f"{options.output / name}: {tokenizer.get_vocab_size():,d} tokens", flush=True)


if __name__ == "__main__":
    main()
