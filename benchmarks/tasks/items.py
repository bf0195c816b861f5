"""Multiple-choice items: what a generator proposes, and what makes an item of it.

A generator is a pure function of the held-out documents and a seeded random generator. It yields candidates; here
they are checked, deduplicated and given the answer's place.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Documents = Mapping[str, Sequence[str]]
"""Held-out documents by domain."""


class Candidate(NamedTuple):
    """A question before it is checked.

    Attributes:
        context: what the model reads; it ends without a blank.
        answer: the right continuation, with the blank or line end before it.
        wrong: the other continuations.
        quote: the passage that must not stand in the training text; empty where the item quotes none.
    """

    context: str
    answer: str
    wrong: tuple[str, ...]
    quote: str = ""


class Item(NamedTuple):
    """A question as the model meets it: `choices[answer]` is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


Generator = Callable[[Documents, np.random.Generator], Iterable[Candidate]]


def make_items(candidates: Iterable[Candidate], accepts: Callable[[Candidate], bool], count: int) -> list[Item]:
    """The first `count` candidates that are accepted and whose contexts differ.

    The answer stands in each place equally often: to prefer a place scores exactly chance.

    Raises:
        ValueError: there are fewer.
    """
    items: dict[str, Item] = {}
    for candidate in candidates:
        if len(items) == count:
            break
        if candidate.context not in items and accepts(candidate):
            items[candidate.context] = _item(candidate, len(items))
    if len(items) < count:
        raise ValueError(f"the held-out text gives {len(items)} items of a task, {count} are needed")
    return list(items.values())


def _item(candidate: Candidate, number: int) -> Item:
    place = number % (len(candidate.wrong) + 1)
    choices = (*candidate.wrong[:place], candidate.answer, *candidate.wrong[place:])
    return Item(candidate.context, choices, place)


def tail(text: str, size: int) -> str:
    """The last whole words of a text, at most `size` characters."""
    if len(text) <= size:
        return text
    cut = re.search(r"\s+(?=\S)", text[-size - 1 :])
    return text[-size - 1 :][cut.end() :] if cut else ""


def head(text: str, size: int) -> str:
    """The first whole words of a text, at most `size` characters."""
    return text if len(text) <= size else re.sub(r"(?:^|\s+)\S*$", "", text[: size + 1])


def shuffled(values: Sequence[T], rng: np.random.Generator) -> list[T]:
    """The values in random order."""
    return [values[i] for i in rng.permutation(len(values)).tolist()]


def others(pool: Sequence[str], answer: str, rng: np.random.Generator, count: int = 3) -> tuple[str, ...]:
    """At most `count` members of the pool that differ from the answer and one another, frequent ones more often.

    The answer comes from the same pool, so a model that knows frequencies alone scores chance.
    """
    found: list[str] = []
    for text in shuffled(pool, rng):
        if text != answer and text not in found:
            found.append(text)
        if len(found) == count:
            break
    return tuple(found)


def alike(pool: Sequence[str], answer: str, rng: np.random.Generator, count: int = 3) -> tuple[str, ...]:
    """`count` of 40 random others, those nearest to the answer in length: a short choice is likely for that alone."""
    nearest = sorted(others(pool, answer, rng, 40), key=lambda text: abs(len(text) - len(answer)))
    return tuple(shuffled(nearest[:count], rng))
