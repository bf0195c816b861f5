"""Shared by the tests of grounds: small ranks, waiting without fixed sleeps, and whether namespaces are permitted."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import namespaces
from benchmarks.cluster.namespaces import is_alive

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def hears_interrupts() -> Iterator[None]:
    """A shell that starts tests in the background has them, and all that they start, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], bool]:
    """Whether a condition comes true within a minute."""

    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 60
        while not (true := condition()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return true

    return wait


@pytest.fixture
def alive() -> Callable[[Path], list[int]]:
    """Processes that still run, of those that wrote their number into a folder as the name of a file."""

    def list_alive(folder: Path) -> list[int]:
        return [int(path.name) for path in folder.iterdir() if is_alive(int(path.name))]

    return list_alive


@pytest.fixture
def sleeper(tmp_path: Path) -> list[str]:
    """A rank that notes its process in `tmp_path/pids`, then sleeps."""
    (tmp_path / "pids").mkdir()
    code = f"import os, time; open(f'{tmp_path}/pids/{{os.getpid()}}', 'w').close(); time.sleep(600)"
    return [sys.executable, "-c", code]


@pytest.fixture
def launcher(tmp_path: Path, sleeper: list[str]) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that runs two sleeping ranks on the ground that an expression makes."""
    started: list[subprocess.Popen[str]] = []

    def launch(ground: str) -> subprocess.Popen[str]:
        code = (
            "from pathlib import Path\n"
            "from benchmarks.cluster.emulated import EmulatedCluster\n"
            "from benchmarks.cluster.ground import Loopback\n"
            "from benchmarks.cluster.ranks import run_ranks\n"
            f"with {ground} as ground:\n"
            f"    run_ranks({sleeper!r}, ground, Path({str(tmp_path / 'log')!r}), timeout=300.0)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def permitted() -> Iterator[None]:
    """Skips where namespaces, bridges or rate limits cannot be made; nothing of ours is left behind."""
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("no ip or tc (iproute2) here")
    probe = namespaces.bridge_name(namespaces.KEPT)
    if probe in namespaces.existing():
        pytest.skip("a cluster is up: python -m benchmarks.cluster down")
    try:
        namespaces.add_bridge(probe)
        limits = ["rate", "1mbit", "burst", "256kb", "limit", "1mb"]
        namespaces.run("tc", "-n", probe, "qdisc", "add", "dev", "bridge", "root", "tbf", *limits)
    except OSError as error:
        pytest.skip(f"no emulated cluster here: {error}")
    finally:
        namespaces.remove([probe])
    before = set(namespaces.existing())
    yield
    left = set(namespaces.existing()) - before
    namespaces.remove(left)
    assert not left
