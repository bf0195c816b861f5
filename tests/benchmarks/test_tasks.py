"""The items of the ten tasks: fair, fresh, and always the same."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.cell import ROOT
from benchmarks.tasks import suite
from benchmarks.tasks.items import Candidate, Item, alike, head, make_items, others, tail
from benchmarks.tasks.prose import PAIRS, agreement
from benchmarks.tasks.seen import CHUNK, SeenText
from benchmarks.tasks.suite import GENERATORS, ITEMS, TASKS, read_items, write_tasks
from models.corpus import read_documents, read_sources, split_documents
from models.data import TextDataModule

ROOT_OF_TEXT = ROOT / "data" / "text"
TOKENIZER = ROOT / "data" / "tokenizer" / "bpe_2k.json"
LENGTH = 64


def text_data(cache: Path, domains: list[str] | None = None) -> TextDataModule:
    return TextDataModule(ROOT_OF_TEXT, TOKENIZER, LENGTH, 8, seed=0, num_batches=1, cache=cache, domains=domains)


@pytest.fixture(scope="module")
def documents() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and held-out documents by domain."""
    parts = {name: split_documents(read_documents(ROOT_OF_TEXT, name)) for name in read_sources(ROOT_OF_TEXT)}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    return write_tasks(text_data(cache), cache)


@pytest.fixture(scope="module")
def tasks(folder: Path) -> dict[str, list[Item]]:
    return {name: read_items(folder, name) for name in TASKS}


class TestItems:
    def test_there_are_ten_tasks_of_a_thousand(self, tasks: dict[str, list[Item]]) -> None:
        assert [len(items) for items in tasks.values()] == [ITEMS] * 10 == [1000] * 10
        assert all(name.startswith("moelab_") for name in tasks)

    def test_chance_is_a_quarter_or_a_half(self, tasks: dict[str, list[Item]]) -> None:
        choices = {name: {len(item.choices) for item in items} for name, items in tasks.items()}
        assert choices == {name: {2} if name == "moelab_agreement" else {4} for name in TASKS}

    def test_every_place_is_right_equally_often(self, tasks: dict[str, list[Item]]) -> None:
        for items in tasks.values():
            counts = Counter(item.answer for item in items)
            assert set(counts.values()) == {ITEMS // len(items[0].choices)}

    def test_no_question_comes_twice_and_no_choice(self, tasks: dict[str, list[Item]]) -> None:
        for items in tasks.values():
            assert len({item.context for item in items}) == ITEMS
            assert all(len(set(item.choices)) == len(item.choices) for item in items)

    def test_contexts_end_and_choices_begin_at_a_word(self, tasks: dict[str, list[Item]]) -> None:
        for items in tasks.values():
            assert all(item.context == item.context.rstrip() != "" for item in items)
            assert all(choice[0] in " \n" and choice.strip() for item in items for choice in item.choices)

    def test_every_item_fits_the_window(self, tasks: dict[str, list[Item]]) -> None:
        tokenizer = Tokenizer.from_file(str(TOKENIZER))
        wholes = [item.context + choice for items in tasks.values() for item in items for choice in item.choices]
        assert max(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(wholes)) <= LENGTH

    def test_right_answers_are_quoted_from_held_out_text_alone(
        self, tasks: dict[str, list[Item]], documents: tuple[dict[str, list[str]], dict[str, list[str]]]
    ) -> None:
        # of code, empty lines are left out
        train, held_out = (
            re.sub(r"\n+", "\n", "\0".join(text for texts in part.values() for text in texts)) for part in documents
        )
        for name, items in tasks.items():
            for item in items[::20]:
                # the factbook's heading is repeated before a part of its line
                shown = item.context.partition(": ")[2] if name == "moelab_facts" else ""
                passage = re.sub(r"\n+", "\n", (shown or item.context) + item.choices[item.answer])
                assert passage in held_out, name
                assert passage not in train, name

    def test_wrong_answers_are_held_out_text_too(
        self, tasks: dict[str, list[Item]], documents: tuple[dict[str, list[str]], dict[str, list[str]]]
    ) -> None:
        held_out = "\0".join(text for texts in documents[1].values() for text in texts)
        made_up = {"moelab_agreement", "moelab_spanish", "moelab_word_order"}
        for name in set(TASKS) - made_up:
            assert all(choice in held_out for item in tasks[name][::50] for choice in item.choices), name


class TestGenerators:
    @pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
    def test_the_seed_decides(self, generator, documents) -> None:
        def first(seed: int) -> list[Candidate]:
            return list(islice(generator(documents[1], np.random.default_rng(seed)), 20))

        assert first(0) == first(0) != first(1)

    def test_forms_that_agree_come_as_often_as_their_opposites(self, documents) -> None:
        counts = Counter(candidate.answer.split()[0] for candidate in agreement(documents[1], np.random.default_rng(0)))
        assert all(counts[form] == counts[other] for form, other in PAIRS)
        assert counts["is"] > 50


class TestWriting:
    def test_files_are_the_same_to_the_byte(self, folder: Path, tmp_path: Path, monkeypatch) -> None:
        chosen = [3, 4]
        monkeypatch.setattr(suite, "_fingerprint", lambda data: "again")
        # the number of a task seeds it
        kept = tuple(GENERATORS[i] if i in chosen else nothing for i in range(10))
        monkeypatch.setattr(suite, "GENERATORS", kept)
        monkeypatch.setattr(suite, "make_items", lambda c, accepts, n: make_items(c, accepts, n) if c else [])
        again = write_tasks(text_data(folder.parent), tmp_path)
        for name in (TASKS[i] for i in chosen):
            assert (again / f"{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()

    def test_items_are_made_once(self, folder: Path, monkeypatch) -> None:
        monkeypatch.setattr(suite, "GENERATORS", ())
        assert write_tasks(text_data(folder.parent), folder.parent) == folder

    def test_a_moved_folder_gets_its_new_path(self, folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / folder.name
        copy.mkdir()
        for path in folder.iterdir():
            if path.is_file():
                (copy / path.name).write_bytes(path.read_bytes())
        write_tasks(text_data(folder.parent), tmp_path)
        text = (copy / f"{TASKS[0]}.yaml").read_text()
        assert str(copy / f"{TASKS[0]}.jsonl") in text
        assert str(folder) not in text

    def test_a_shorter_window_has_other_items(self, folder: Path) -> None:
        other = text_data(folder.parent)
        for length, same in ((1024, True), (64, True), (63, False)):
            other.sequence_length = length
            assert (f"tasks-{suite._fingerprint(other)}" == folder.name) == same

    def test_a_missing_domain_is_named(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"this run lacks \['speeches', .*'spanish'\]"):
            write_tasks(text_data(folder.parent, ["facts", "code"]), tmp_path)


def nothing(documents, rng) -> Iterator[Candidate] | tuple[()]:
    return ()


class TestMakeItems:
    CANDIDATES = tuple(Candidate(f"context {n // 2}", " right", (" a", " b", " c")) for n in range(12))

    def test_contexts_come_once_and_answers_go_round(self) -> None:
        items = make_items(self.CANDIDATES, lambda candidate: candidate.context != "context 1", 5)
        assert [item.context[-1] for item in items] == list("02345")
        assert [item.answer for item in items] == [0, 1, 2, 3, 0]
        assert all(item.choices[item.answer] == " right" for item in items)
        assert all(sorted(item.choices) == [" a", " b", " c", " right"] for item in items)

    def test_too_few_are_refused(self) -> None:
        with pytest.raises(ValueError, match="gives 6 items of a task, 7 are needed"):
            make_items(self.CANDIDATES, lambda candidate: True, 7)


class TestPieces:
    @given(st.text("ab \n", max_size=30), st.integers(1, 20))
    def test_tail_and_head_are_whole_words_of_the_text(self, text: str, size: int) -> None:
        end, start = tail(text, size), head(text, size)
        assert text.endswith(end)
        assert text.startswith(start)
        assert max(len(end), len(start)) <= size
        assert len(end) in (0, len(text)) or text[-len(end) - 1].isspace()
        assert start == text or text[len(start) : len(start) + 1].isspace() or start == ""

    def test_wrong_answers_differ_from_the_right_one_and_one_another(self) -> None:
        pool = [" a", " b", " b", " c", " d", " e"] * 3
        found = others(pool, " a", np.random.default_rng(0))
        assert len(set(found)) == 3
        assert " a" not in found

    def test_alike_are_the_nearest_in_length(self) -> None:
        pool = ["x" * size for size in range(1, 40)]
        assert {len(text) for text in alike(pool, "x" * 20, np.random.default_rng(0))} <= {18, 19, 21, 22}


@given(st.text("ab", max_size=80), st.integers(0, 60), st.integers(1, 2 * CHUNK + 9), st.text("ab", max_size=2))
def test_seen_text_equals_a_plain_search(text: str, first: int, size: int, more: str) -> None:
    passage = text[first : first + size] + more
    assert (passage in SeenText(text)) == (passage in text)
