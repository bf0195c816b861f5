"""Is MegaBlocks right on this CUDA device, and how fast is our layer beside it? `make gpu-check`

python -m benchmarks.gpu_check --output outputs/gpu_check.jsonl

Needs one CUDA device, torch and `make megablocks`, neither Hydra nor W&B. Prints two tables and writes their rows as
lines of JSON. Ends with 0 where all parts agree with their references, 1 where one does not, 2 without a device.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer_timing import SIZES, SKEWS, Size, compare, cuda_clock, first_line
from benchmarks.megablocks_parity import CHECKS
from models.megablocks import native_parts

PACKAGES = ("torch", "triton", "megablocks", "stanford-stk", "grouped_gemm")


def ground(device: torch.device) -> dict[str, Any]:
    """What all rows were measured on: the device, packages' versions, which parts of MegaBlocks are native."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = {mlp_impl: native_parts(mlp_impl) for mlp_impl in ("grouped", "sparse")}
    return {"device": name, "versions": {package: _version(package) for package in PACKAGES}, "native_parts": parts}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def parity_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """One row a comparison; a part that cannot run here is a row with the reason, and no pass."""
    for part, check in CHECKS.items():
        try:
            for found in check(device):
                yield {"kind": "parity", "part": part, **found._asdict(), "passed": found.passed}
        # whatever a kernel's compilation or launch raises is what this is to find out
        except Exception as error:
            yield {"kind": "parity", "part": part, "name": part, "passed": False, "reason": first_line(error)}


def timing_rows(device: torch.device, sizes: Iterable[Size], rounds: int) -> Iterator[dict[str, Any]]:
    """One row a size, skew and variant."""
    for size, skew in product(sizes, SKEWS):
        yield from compare(size, skew, device, rounds, cuda_clock)


def parity_line(row: dict[str, Any]) -> str:
    """A row of the first table."""
    verdict = "ok" if row["passed"] else "WRONG" if "error" in row else "not run"
    detail = row.get("reason") or f"{row['error']:.1e} (at most {row['tolerance']:.0e})"
    return f"{row['name']:<40} {verdict:<8} {detail}"


def timing_line(row: dict[str, Any]) -> str:
    """A row of the second table."""
    sizes = f"T{row['tokens']} D{row['dim']} F{row['hidden_dim']} E{row['num_experts']} K{row['top_k']} {row['skew']}"
    if "reason" in row:
        return f"{sizes:<38} {row['variant']:<27} {row['reason']}"
    return f"{sizes:<38} {row['variant']:<27} {row['median_ms']:8.3f} ({row['low_ms']:.3f}..{row['high_ms']:.3f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check.jsonl"), help="where the rows go")
    parser.add_argument("--rounds", type=int, default=30, help="measured steps of each variant")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"gpu-check needs a CUDA device, and torch {torch.__version__} sees none here")
        return 2
    device = torch.device("cuda")
    shared, rows = ground(device), []
    print(json.dumps(shared))
    print("\nParity: largest difference from a plain reference, as a share of the largest number")
    for row in parity_rows(device):
        rows.append(row)
        print(parity_line(row), flush=True)
    print("\nMilliseconds of a layer's forward and backward pass: median (quartiles)")
    for row in timing_rows(device, SIZES, options.rounds):
        rows.append(row)
        print(timing_line(row), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(json.dumps(shared | row) + "\n" for row in rows), encoding="utf-8")
    return 0 if all(row.get("passed", True) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
