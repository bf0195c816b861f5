"""Tasks on the domains that are not running English: dictionary, factbook, code, Spanish."""

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from benchmarks.tasks.items import Candidate, Documents, alike, head, shuffled, tail

CONTEXT, CHOICE = 90, 36
GLOSS_WORDS = 4


def gloss(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """How a definition goes on: its next four words against four words of others, first words against first words."""
    entry = re.compile(r"^.+ \((?:noun|verb|adjective|adverb)\):(?= )", re.M)
    found, pools = [], defaultdict(list)
    for text in documents["dictionary"]:
        for match in entry.finditer(text):
            line = text[match.end() :].partition("\n")[0]
            for answer in re.finditer(rf"(?: [^ ]+){{{GLOSS_WORDS}}}", line):
                at_start = answer.start() == 0
                found.append((match[0] + line[: answer.start()], answer[0], at_start))
                pools[at_start].append(answer[0])
    for before, answer, at_start in shuffled(found, rng):
        context = tail(before, CONTEXT)
        yield Candidate(context, answer, alike(pools[at_start], answer, rng), context + answer)


def facts(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """What stands under a heading of the factbook, against what stands under others."""
    found = []
    for text in documents["facts"]:
        for line in re.finditer(r"^([^:\n]+:)( .+)$", text, re.M):
            for part in re.finditer(r"(?:^|(?<=[;,+])) [^;,+]{4,}", line[2]):
                before = tail(line[2][: part.start()], 50).lstrip()
                # the first fact under a heading follows the line before, as headings alone repeat
                context = f"{line[1]} {before}" if before else tail(text[: line.end(1)], 60)
                found.append((line[1], context, head(part[0], CHOICE), before or context))
    for heading, context, answer, shown in shuffled(found, rng):
        pool = [other for name, _, other, _ in found if name != heading]
        yield Candidate(context, answer, alike(pool, answer, rng), shown + answer)


def code_line(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """The next line of Python against other lines, of other places, with the same indentation."""
    found, pools = [], defaultdict(list)
    for text in documents["code"]:
        for match in re.finditer(r"\n( *)[^\s#][^\n]{7,}", text):
            answer = head(match[0], CHOICE + len(match[1]))
            found.append((text[: match.start()].rstrip(), match[1], answer))
            pools[match[1]].append(answer)
    for before, indent, answer in shuffled(found, rng):
        # whole lines: a line cut in the middle has lost its indentation
        context = before[-CONTEXT:].partition("\n")[2] if len(before) > CONTEXT else before
        if context and len(set(pools[indent])) > 40:
            yield Candidate(context, answer, alike(pools[indent], answer, rng), context + answer)


def spanish(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """Four Spanish words in their order against three other orders of them."""
    phrase = re.compile(r"(?: [a-záéíóúñü]+){4}(?![a-záéíóúñü])")
    found = [(text, match) for text in documents["spanish"] for match in phrase.finditer(text)]
    for text, match in shuffled(found, rng):
        words, context = match[0].split(), tail(text[: match.start()], CONTEXT)
        if len(set(words)) == 4 and context:
            yield Candidate(context, match[0], _orders(words, rng), context + match[0])


def _orders(words: list[str], rng: np.random.Generator) -> tuple[str, ...]:
    orders: list[list[str]] = [words]
    while len(orders) < 4:
        order = shuffled(words, rng)
        if order not in orders:
            orders.append(order)
    return tuple("".join(f" {word}" for word in order) for order in orders[1:])
