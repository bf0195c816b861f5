"""Tasks on the domains that are not running English: dictionary, factbook and code."""

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from benchmarks.tasks.items import Candidate, Documents, alike, head, shuffled, tail
from benchmarks.tasks.prose import CHOICE, CONTEXT

GLOSS_WORDS = 3


def gloss(documents: Documents, rng: np.random.Generator) -> Iterator[Candidate]:
    """How a definition goes on: its next three words against three words of others, first words against first words."""
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
    """The next line of Python that is not empty, against lines of other places with the same indentation."""
    found, pools = [], defaultdict(list)
    for text in documents["code"]:
        for match in re.finditer(r"(?<=\S)\n(\n*)( *)(\S[^\n]{5,})", text):
            empty, indent, line = match.groups()
            if words := head(line, CHOICE):
                found.append((text[: match.start()], empty, indent, f"\n{indent}{words}"))
                pools[indent].append(found[-1][-1])
    for before, empty, indent, answer in shuffled(found, rng):
        # whole lines: a line cut in the middle has lost its indentation
        context = before[-CONTEXT:].partition("\n")[2] or before.rpartition("\n")[2]
        if len(set(pools[indent])) > 40:
            yield Candidate(context, answer, alike(pools[indent], answer, rng), context + empty + answer)
