"""Tasks that only attention to the context solves: random words of the held-out text, no passage of it."""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from benchmarks.tasks.items import Candidate, Documents, shuffled
from benchmarks.tasks.prose import PROSE

NUM_WORDS = 400
"""So many of the most frequent words of four to seven letters are drawn from."""


def recall(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """Which value stood beside a key, against the values of the other three keys (associative recall)."""
    words = _words(documents)
    while True:
        drawn = shuffled(words, rng)[:8]
        pairs = list(zip(drawn[:4], drawn[4:], strict=True))
        asked, *rest = (pairs[i] for i in rng.permutation(4))
        shown = ", ".join(f"{key} {value}" for key, value in pairs)
        yield Candidate(f"{shown}, {asked[0]}", f" {asked[1]}", tuple(f" {value}" for _, value in rest))


def induction(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """How a sequence of random words goes on that is read for the second time, against other words of it."""
    words = _words(documents)
    while True:
        sequence = shuffled(words, rng)[:8]
        place = int(rng.integers(3, 8))
        shown = " ".join(sequence + sequence[:place])
        wrong = shuffled(sequence[:place] + sequence[place + 1 :], rng)[:3]
        yield Candidate(shown, f" {sequence[place]}", tuple(f" {word}" for word in wrong))


def _words(documents: Documents) -> list[str]:
    counts = Counter(word for name in PROSE for text in documents[name] for word in re.findall(r"\b[a-z]{4,7}\b", text))
    return [word for word, _ in counts.most_common(NUM_WORDS)]
