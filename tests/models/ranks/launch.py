"""Start a program once for each rank of a process group and wait for all."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_ranks(program: Path, num_ranks: int, folder: Path, *arguments: str, timeout: float = 240) -> None:
    """`python PROGRAM RANK STORE FOLDER ARGUMENTS...` for each rank; fails with what a failed rank wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    store.unlink(missing_ok=True)
    commands = [
        [sys.executable, str(program), str(rank), str(store), str(folder), *arguments] for rank in range(num_ranks)
    ]
    logs = [(folder / f"rank{rank}.txt").open("w+") for rank in range(num_ranks)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [(folder / f"rank{rank}.txt").read_text()[-2000:] for rank, code in enumerate(codes) if code]
    assert not failed, failed[0]
