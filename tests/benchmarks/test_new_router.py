"""One file and one YAML add a router: the README's example appears in every place by itself."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "outputs", "results", "wandb", "__pycache__")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository with the README's router added, and nothing else changed."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    readme = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    (folder / "routers" / "contrary.py").write_text(source)
    (folder / "conf" / "router" / "contrary.yaml").write_text(yaml)
    return folder


@pytest.fixture
def run(checkout: Path) -> Callable[..., str]:
    """Run a module in that checkout and return what it printed."""

    def run(*arguments: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.mark.slow
def test_a_new_router_is_trained_tested_profiled_and_in_the_shootout(checkout: Path, run: Callable[..., str]) -> None:
    toy = ["setting=micro8", "scale=smoke", "logger=csv"]
    printed = run("pytest", "-q", "tests/routers/test_contract.py", "-k", "contrary", "-p", "no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 10
    run("benchmarks.train", *toy)
    printed = run("benchmarks.train", *toy, "router=contrary", "trainer.max_steps=8")
    trained = Path(re.findall(r"measured: (.*)/records.csv", printed)[0])
    run("benchmarks.profile", f"trace.run={trained}", "profile.batches=2", "logger=csv")
    cells = "from benchmarks.plan import plan; p = plan(['router_shootout'], 'smoke', 'outputs', 'csv'); "
    # every stage that this router needs, as `make reproduce` would run it
    pick = "print(*(' '.join(s.command[2:]) for s in [*p.arms.values(), *p.cells] if any(r in s.command for r in "
    listed = subprocess.run(
        [sys.executable, "-c", cells + pick + "('router=contrary', 'router=topk'))), sep=chr(10))"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    stages = [line.split() for line in listed.stdout.splitlines()]
    assert len(stages) == 4, "an arm and a cell each"
    for stage in stages:
        run(*stage)
    (records,) = (checkout / "outputs").glob("smoke/router_shootout/*contrary*/records.csv")
    assert "contrary/contiguous,held_out_over_plain" in records.read_text()
