"""The micro benchmarks, which `make bench` alone runs, still find what they import."""

import runpy

import pytest

from benchmarks.cell import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "micro").glob("*.py")), ids=lambda path: path.stem)
def test_it_can_be_collected(path):
    assert any(name.startswith("test_") and callable(value) for name, value in runpy.run_path(str(path)).items())
