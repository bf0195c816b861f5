"""The repository's own rules: what is imported is what lies here, and the papers' packages stay apart."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "models", "routers", "predictors", "placement", "traces")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_the_repository_s_own(name: str) -> None:
    # a stray `routers` in site-packages would otherwise be tested instead
    assert Path(importlib.import_module(name).__file__ or "").is_relative_to(ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_configuration_file_says_first_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S.{10}", lines[0]), f"{path} starts with {lines[0]!r}"


def test_functions_and_files_stay_short() -> None:
    import ast

    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert text.count("\n") <= 300, f"{path} has {text.count(chr(10))} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"


def test_every_experiment_names_claim_source_and_command() -> None:
    for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        text = path.read_text()
        for word in ("# Claim:", "# Source:", "# Run: make reproduce"):
            assert word in text, f"{path} lacks {word!r}"
        experiment = yaml.safe_load(text)
        assert experiment["experiment"] == path.stem
        ids = [item["id"] for item in experiment["expect"]]
        assert len(ids) == len(set(ids))


def test_readme_commands_are_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for document in DOCUMENTS for word in re.findall(r"`?make ([a-z-]+)", document.read_text())}
    assert {"reproduce", "test"} <= named
    assert named <= targets, f"no such targets: {sorted(named - targets)}"


def test_the_documents_module_commands_exist() -> None:
    documents = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("conf/**/*.yaml"),
    ]
    for document in documents:
        for name in re.findall(r"python -m benchmarks\.(\w+)", document.read_text()):
            places = (f"{name}.py", f"{name}/__main__.py")
            assert any((ROOT / "benchmarks" / place).exists() for place in places), f"{document}: benchmarks.{name}"
