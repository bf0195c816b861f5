"""Text on disk to token arrays: eight domains, whole documents, a held-out tail, a cache.

A corpus is a folder with one text file a domain (`NAME.txt` or `NAME.txt.xz`) and a `SOURCES.json` that says
where each text comes from, under which licence, and its sha256. Inside a file documents follow one another in
a fixed shuffled order with `SEPARATOR` between them, so the last few per cent are a random sample of
documents: that tail is held out, whole documents at a time.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from traces.atomic import write_atomically

SEPARATOR = "<|endoftext|>"
"""Stands between two documents in a text file and, as one token, after every document in a token array."""

HELD_OUT_PROPORTION = 0.05
"""Share of a domain's bytes that is never trained on (rounded up to whole documents)."""

_HOW_TO_BUILD = "run `make corpus` (python -m benchmarks.corpus), or use the shipped data/text"
_DOCUMENTS_PER_CALL = 256


@dataclass(frozen=True)
class Corpus:
    """Token ids of every domain, `uint16`, in the order of `domains`.

    Each array is the documents of its split one after another, each followed by the separator's id.
    `fingerprint` is the sha256 over the texts' hashes, the tokenizer's file and the split's rule.
    """

    train: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    vocab_size: int
    fingerprint: str

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.train)


def load_corpus(root: Path, tokenizer_path: Path, cache: Path, domains: Sequence[str] | None = None) -> Corpus:
    """Tokens of the corpus at `root` (of all its domains, or of `domains` in that order).

    Tokenising happens once: arrays are kept in `cache` under the hash of text and tokenizer. A text is
    checked against its sha256 when it is tokenised.

    Raises:
        FileNotFoundError: the corpus, one of its texts or the tokenizer is missing.
        ValueError: an unknown domain, a text that differs from its sha256, a vocabulary beyond 65,536.
    """
    sources = read_sources(root)
    names = _known(domains, sources, root)
    tokenizer, tokenizer_hash = _load_tokenizer(Path(tokenizer_path))
    split: dict[str, dict[str, np.ndarray]] = {"train": {}, "held_out": {}}
    keys = []
    for name in names:
        key = _sha256(f"{sources[name]['sha256']} {tokenizer_hash} held out {HELD_OUT_PROPORTION}".encode())
        keys.append(f"{name} {key}")
        paths = {part: Path(cache) / f"{name}-{key[:16]}-{part}.npy" for part in split}
        if not all(path.exists() for path in paths.values()):
            _tokenise(read_documents(root, name), tokenizer, paths, name)
        for part, path in paths.items():
            split[part][name] = np.load(path)
    return Corpus(split["train"], split["held_out"], tokenizer.get_vocab_size(), _sha256("\n".join(keys).encode()))


def read_sources(root: Path) -> dict[str, dict]:
    """The `domains` table of `root/SOURCES.json`: name -> file, sha256, bytes, documents, source, licence."""
    path = Path(root) / "SOURCES.json"
    if not path.exists():
        raise FileNotFoundError(f"no corpus at {root} ({path.name} is missing): {_HOW_TO_BUILD}")
    return json.loads(path.read_text(encoding="utf-8"))["domains"]


def read_documents(root: Path, domain: str) -> list[str]:
    """The documents of one domain in file order, after checking the file against its sha256."""
    entry = read_sources(root)[domain]
    path = Path(root) / entry["file"]
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing although SOURCES.json lists it: {_HOW_TO_BUILD}")
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    found = _sha256(content)
    if found != entry["sha256"]:
        raise ValueError(f"{path} has sha256 {found}, SOURCES.json says {entry['sha256']}: {_HOW_TO_BUILD}")
    return content.decode("utf-8").split(SEPARATOR)


def split_documents(documents: Sequence[str], domain: str = "") -> tuple[list[str], list[str]]:
    """(train, held out): held out are the fewest last documents with `HELD_OUT_PROPORTION` of the bytes."""
    if len(documents) < 2:
        raise ValueError(f"domain {domain!r} has {len(documents)} document(s): two are needed to hold one out")
    sizes = [len(document.encode()) for document in documents]
    wanted, first = HELD_OUT_PROPORTION * sum(sizes), len(documents)
    while first > 1 and sum(sizes[first:]) < wanted:
        first -= 1
    return list(documents[:first]), list(documents[first:])


def _known(domains: Sequence[str] | None, sources: dict[str, dict], root: Path) -> tuple[str, ...]:
    names = tuple(sources) if domains is None else tuple(domains)
    unknown = [name for name in names if name not in sources]
    if unknown or not names or len(set(names)) < len(names):
        problem = f"unknown {unknown}" if unknown else "empty or repeated"
        raise ValueError(f"domains {list(names)}: {problem}; {root} has {list(sources)}")
    return names


def _load_tokenizer(path: Path) -> tuple[Tokenizer, str]:
    if not path.exists():
        raise FileNotFoundError(f"no tokenizer at {path}: run `python -m benchmarks.tokenizer`")
    content = path.read_bytes()
    tokenizer = Tokenizer.from_buffer(content)
    if tokenizer.get_vocab_size() > 1 << 16 or tokenizer.token_to_id(SEPARATOR) is None:
        raise ValueError(f"{path}: {tokenizer.get_vocab_size()} tokens; needed: at most 65536, with {SEPARATOR!r}")
    return tokenizer, _sha256(content)


def _tokenise(documents: list[str], tokenizer: Tokenizer, paths: dict[str, Path], domain: str) -> None:
    for part, texts in zip(("train", "held_out"), split_documents(documents, domain), strict=True):
        tokens = np.concatenate(list(_encode(texts, tokenizer)))
        write_atomically(paths[part], partial(np.save, arr=tokens))


def _encode(documents: list[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    end = tokenizer.token_to_id(SEPARATOR)
    for first in range(0, len(documents), _DOCUMENTS_PER_CALL):
        for encoding in tokenizer.encode_batch_fast(documents[first : first + _DOCUMENTS_PER_CALL]):
            yield np.array([*encoding.ids, end], dtype=np.uint16)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
