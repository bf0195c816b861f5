"""The ten tasks as files that lm-evaluation-harness reads: items as JSON lines, a YAML a task.

They lie in one folder a combination of text, tokenizer, window and generators, and are made once.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.tasks.items import Candidate, Generator, Item, make_items
from benchmarks.tasks.prose import agreement, cloze, domain, next_sentence, repeat, spanish, word_order
from benchmarks.tasks.seen import SeenText
from benchmarks.tasks.special import code_line, facts, gloss
from models.corpus import read_documents, read_sources, split_documents
from models.data import TextDataModule
from traces.atomic import write_text_atomically

ITEMS, WINDOW = 1000, 64
"""Items a task, and the tokens that the longest may have: the same items for every model that reads so many."""

TOY_ITEMS = 100
"""Items a task for a model with a shorter window, which only the short items fit."""

SEED = 0
"""Of all items; another one is another benchmark."""

GENERATORS: tuple[Generator, ...] = (
    cloze,
    next_sentence,
    agreement,
    domain,
    gloss,
    facts,
    code_line,
    spanish,
    word_order,
    repeat,
)

TASKS: tuple[str, ...] = tuple(f"moelab_{generator.__name__}" for generator in GENERATORS)


def write_tasks(data: TextDataModule, cache: Path) -> Path:
    """The folder of the tasks' files, made if it is missing.

    Raises:
        ValueError: a domain that the tasks are about is not in the run's text.
    """
    folder = Path(cache).resolve() / f"tasks-{_fingerprint(data)}"
    if not all((folder / f"{name}.jsonl").exists() for name in TASKS):
        held_out, seen = _read(data)
        window = _window(data)
        accepts = partial(_accepts, seen=seen, encode=_encoder(data.tokenizer), limit=window)
        count = ITEMS if window == WINDOW else TOY_ITEMS
        for number, (name, generator) in enumerate(zip(TASKS, GENERATORS, strict=True)):
            rng = np.random.default_rng((SEED, number))
            _write_items(folder, name, make_items(generator(held_out, rng), accepts, count))
    for name in TASKS:
        _write_task(folder, name)
    return folder


def read_items(folder: Path, name: str) -> list[Item]:
    """The items of one task in their order."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return [Item(row["context"], tuple(row["choices"]), row["answer"]) for row in rows]


def _write_items(folder: Path, name: str, items: list[Item]) -> None:
    lines = (json.dumps(item._asdict(), ensure_ascii=False) + "\n" for item in items)
    write_text_atomically(folder / f"{name}.jsonl", "".join(lines))


def _write_task(folder: Path, name: str) -> None:
    """The YAML, written again where the folder has moved: its paths are absolute."""
    template = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    paths = {"items": folder / f"{name}.jsonl", "cache": folder / "datasets"}
    text = template.format(name=name, **{key: json.dumps(str(path)) for key, path in paths.items()})
    target = folder / f"{name}.yaml"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        write_text_atomically(target, text)


def _read(data: TextDataModule) -> tuple[dict[str, list[str]], SeenText]:
    """Held-out documents by domain, and all training text."""
    names = list(read_sources(data.root))
    if missing := [name for name in names if name not in data.domains]:
        raise ValueError(f"the tasks are about text of all domains, this run lacks {missing}")
    parts = {name: split_documents(read_documents(data.root, name), name) for name in names}
    train = "".join(document for documents, _ in parts.values() for document in documents)
    return {name: held_out for name, (_, held_out) in parts.items()}, SeenText(train)


def _accepts(candidate: Candidate, seen: SeenText, encode: Callable[[str], list[int]], limit: int) -> bool:
    """Whether a candidate fits the window with every choice, and quotes nothing that was trained on."""
    context = encode(candidate.context)
    if not context or (candidate.quote and candidate.quote in seen):
        return False
    wholes = [encode(candidate.context + choice) for choice in (candidate.answer, *candidate.wrong)]
    # a choice whose first letters melt into the context's last token would be scored without them
    return all(len(context) < len(whole) <= limit and whole[: len(context)] == context for whole in wholes)


def _encoder(tokenizer: Path) -> Callable[[str], list[int]]:
    loaded = Tokenizer.from_file(str(tokenizer))
    return lambda text: loaded.encode(text).ids


def _window(data: TextDataModule) -> int:
    return min(WINDOW, data.sequence_length)


def _fingerprint(data: TextDataModule) -> str:
    """Twelve hex digits that change with text, tokenizer, window, seed and the generators' code."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    parts = f"{data.fingerprint} {_window(data)} {SEED} {ITEMS} {hashlib.sha256(code).hexdigest()}"
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
