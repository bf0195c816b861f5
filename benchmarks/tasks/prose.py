"""Tasks on running English: last word, next sentence, agreement, and which text goes on."""

import re
from collections.abc import Iterator

import numpy as np

from benchmarks.tasks.items import Candidate, Documents, alike, head, others, shuffled, tail

PROSE = ("speeches", "drama", "novel", "docs")
CONTEXT, CHOICE = 90, 36
"""Characters of context and of a long choice: together within 64 tokens of a 2k vocabulary."""

# forms of which the rest of the sentence allows one
PAIRS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
    ("this", "these"),
    ("that", "those"),
    ("a", "an"),
    ("he", "him"),
    ("they", "them"),
    ("I", "me"),
    ("we", "us"),
    ("my", "mine"),
    ("our", "ours"),
    ("your", "yours"),
)


def cloze(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """The last word of a clause against last words of other clauses of the same domain."""
    ends = re.compile(r"(?<=[a-z,]) [a-z]{3,}(?=[.!?;:,])")
    pools = {name: [word for text in documents[name] for word in ends.findall(text)] for name in PROSE}
    found = [(name, text, match) for name in PROSE for text in documents[name] for match in ends.finditer(text)]
    for name, text, match in shuffled(found, rng):
        context = tail(text[: match.start()], CONTEXT)
        yield Candidate(context, match[0], others(pools[name], match[0], rng), context + match[0])


def next_sentence(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """How the text goes on after a sentence or a semicolon, against other such beginnings of the same domain."""
    begins = re.compile(r"(?<=[a-z][.!?;:])\s(?=\w)[^.!?;:]{16,}")
    found = [(name, text, match) for name in PROSE for text in documents[name] for match in begins.finditer(text)]
    pools = {name: [head(match[0], CHOICE) for domain, _, match in found if domain == name] for name in PROSE}
    for name, text, match in shuffled(found, rng):
        context, answer = tail(text[: match.start()], CONTEXT), head(match[0], CHOICE)
        yield Candidate(context, answer, alike(pools[name], answer, rng), context + answer)


def agreement(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """A form against the one that does not agree, with the two words that follow; as many of the one as of the other."""
    texts = [text for name in PROSE for text in documents[name]]
    candidates: list[Candidate] = []
    for pair in PAIRS:
        by_form = [_uses(texts, form, other) for form, other in (pair, pair[::-1])]
        count = min(map(len, by_form))
        candidates += [candidate for uses in by_form for candidate in shuffled(uses, rng)[:count]]
    yield from shuffled(candidates, rng)


def _uses(texts: list[str], form: str, other: str) -> list[Candidate]:
    pattern = re.compile(rf"(?<=[a-z,]) {form}((?: [a-z]+){{1,2}})")
    found = []
    for text in texts:
        for match in pattern.finditer(text):
            context = tail(text[: match.start()], CONTEXT)
            found.append(Candidate(context, match[0], (f" {other}{match[1]}",), context + match[0]))
    return found


def domain(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """How a text goes on, against pieces of three other domains."""
    names = list(documents)
    while True:
        name, *rest = shuffled(names, rng)[:4]
        context, answer = _piece(documents, name, rng)
        wrong = tuple(_piece(documents, other, rng)[1] for other in rest)
        if context:
            yield Candidate(context, answer, wrong, context + answer)


def _piece(documents: Documents, name: str, rng: np.random.Generator) -> tuple[str, str]:
    """Some words from a random place of a domain, and those that follow."""
    texts = documents[name]
    text = texts[rng.integers(len(texts))]
    blanks = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text)]
    place = blanks[rng.integers(len(blanks))]
    return tail(text[:place], 24), head(text[place:], 24)
