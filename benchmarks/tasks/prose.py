"""Tasks on running English: last word, next sentence, agreement, and which text goes on."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.tasks.items import Candidate, Documents, alike, head, others, shuffled, tail

PROSE = ("speeches", "drama", "novel", "docs")
CONTEXT, CHOICE = 72, 24
"""Characters of context and of a long choice: few, as what a task costs is its tokens."""

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
    """A form against the one that does not agree, with the words that follow; as many of the one as of the other."""
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
    text = texts[int(rng.integers(len(texts)))]
    blanks = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text)]
    place = blanks[int(rng.integers(len(blanks)))]
    return tail(text[:place], CONTEXT // 2), head(text[place:], CHOICE)


def word_order(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """Four English words in their order against three other orders of them."""
    yield from orders([text for name in PROSE for text in documents[name]], "a-z", rng)


def spanish(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """Four Spanish words in their order against three other orders of them."""
    yield from orders(documents["spanish"], "a-záéíóúñü", rng)


def orders(texts: Sequence[str], letters: str, rng: np.random.Generator) -> Iterator[Candidate]:
    phrase = re.compile(rf"(?<=\S)(?: [{letters}]+){{4}}(?![{letters}])")
    found = [(text, match) for text in texts for match in phrase.finditer(text)]
    for text, match in shuffled(found, rng):
        words, context = match[0].split(), tail(text[: match.start()], CONTEXT)
        if len(set(words)) == 4:
            yield Candidate(context, match[0], _other_orders(words, rng), context + match[0])


def _other_orders(words: list[str], rng: np.random.Generator) -> tuple[str, ...]:
    found: list[list[str]] = [words]
    while len(found) < 4:
        order = shuffled(words, rng)
        if order not in found:
            found.append(order)
    return tuple("".join(f" {word}" for word in order) for order in found[1:])


def repeat(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """A word that the context holds already against such words of other places in the same domain."""
    word = re.compile(r"(?<=\S) [A-Za-z]{5,}\b")
    found = []
    for name, texts in documents.items():
        for text in texts:
            for match in word.finditer(text):
                context = tail(text[: match.start()], CONTEXT)
                if re.search(rf"\b{match[0][1:]}\b", context):
                    found.append((name, context, match[0]))
    pools = {name: [answer for domain, _, answer in found if domain == name] for name in documents}
    for name, context, answer in shuffled(found, rng):
        wrong = others([other for other in pools[name] if other[1:] not in context], answer, rng)
        yield Candidate(context, answer, wrong, context + answer)
