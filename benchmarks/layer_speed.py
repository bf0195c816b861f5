"""Is our MoE layer as fast as Hugging Face's, in no more memory? python -m benchmarks.layer_speed [--grid full]

Qwen2-MoE's sparse block, with each of its experts implementations, and our layer compute the same function forward and
backward (benchmarks/layer_steps.py), on one thread of one CPU. Nothing is timed before outputs and gradients agree.
Time is the process's CPU time, which other processes do not lengthen by taking their turn; steps of two layers
alternate, and what is told is the median of the pairs' ratios with its interval. Memory is the peak of what a step
allocates. As in training, oneDNN is off: it caches a primitive for every size of a group.

`plain` is our layer in the plainest torch, so what ours gains over it is what was removed beside the matrix products.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch.profiler import profile

from benchmarks.cell import machine
from benchmarks.layer_steps import IMPLEMENTATIONS, Size, build, difference
from benchmarks.layer_timing import SKEWS, Step
from traces.atomic import write_text_atomically

TOLERANCE = 1e-5
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm"}
# batched_mm copies a matrix for every row: more than this is left out
BATCHED_BYTES = 2**30
GRIDS = {
    "corners": [
        Size(dim, num_experts, num_tokens, 2, load)
        for dim, num_experts, (num_tokens, load) in itertools.product(
            (64, 512), (8, 64), ((2048, "zipf"), (8192, "uniform"))
        )
    ],
    "full": [
        Size(dim, num_experts, num_tokens, top_k, load)
        for dim, num_experts, num_tokens, load in itertools.product(
            (64, 128, 256, 512), (8, 16, 32, 64), (2048, 4096, 8192), SKEWS
        )
        for top_k in ((2, 4) if num_experts >= 32 else (2,))
    ],
}


def paired_seconds(first: Callable[[], object], second: Callable[[], object], pairs: int) -> Float[np.ndarray, "P 2"]:
    """CPU seconds of both, one after the other, in turn the first and the second ahead."""
    seconds = np.empty((pairs, 2))
    for pair in range(pairs):
        for place in (0, 1) if pair % 2 else (1, 0):
            started = time.process_time()
            (first, second)[place]()
            seconds[pair, place] = time.process_time() - started
    return seconds


def median_interval(values: Float[np.ndarray, " P"]) -> tuple[float, float, float]:
    """Median and the order statistics around it that hold the true one in 95 % of cases, whatever the distribution.

    Raises:
        ValueError: fewer than 6 values, which no such interval has.
    """
    if len(values) < 6:
        raise ValueError(f"an interval of the median needs 6 values, got {len(values)}")
    # the most values that may lie on one side of the interval
    tail = int(stats.binom.ppf(0.025, len(values), 0.5)) - 1
    ordered = np.sort(values)
    return float(np.median(values)), float(ordered[tail]), float(ordered[-1 - tail])


def step_peak_bytes(step: Step) -> int:
    """Peak of one step, the gradients it leaves included."""
    # the last step's, let go inside, would count as memory given back
    step.clear()
    return peak_bytes(step)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that torch's allocator on the CPU holds at once beyond those it held before, during one call."""
    with profile(profile_memory=True) as profiler:
        work()
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(max(held.max(initial=0), 0))


def product_share(step: Callable[[], object], steps: int = 3) -> float:
    """Share of a step's operators' time that is matrix products.

    A step runs the same operators every time, so each one's shortest time is told from its waits for other processes.
    """
    runs = []
    for _ in range(steps):
        with profile() as profiler:
            step()
        runs.append(sorted(profiler.events() or [], key=lambda event: event.time_range.start))
    shortest = np.min([[event.self_cpu_time_total for event in events] for events in runs], axis=0)
    is_product = np.array([event.name in PRODUCTS for event in runs[0]])
    return float(shortest[is_product].sum() / shortest.sum())


def compare(size: Size, others: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each other variant: our step's CPU seconds and peak bytes over the other's.

    Args:
        size: of the layer and its batch.
        others: variants to compare with.
        seconds: CPU time for the pairs of one comparison; at least 6 pairs are made.

    Raises:
        ValueError: a variant whose output or gradients differ by more than `TOLERANCE`.
    """
    steps = build(size)
    ours = steps["ours"]
    shared = {"peak_bytes": step_peak_bytes(ours), "product_share": product_share(ours)}
    for name in others:
        row = asdict(size) | {"other": name}
        if name == "batched_mm" and size.batched_bytes > BATCHED_BYTES:
            yield row | {"left_out": f"copies {size.batched_bytes / 1e9:.1f} GB of weights"}
            continue
        if not (found := difference(ours, steps[name])) <= TOLERANCE:
            raise ValueError(f"{name} must compute the same to {TOLERANCE}, got a difference of {found} at {size}")
        yield row | {"difference": found} | shared | _against(ours, steps[name], seconds)


def _against(ours: Step, other: Step, seconds: float) -> dict[str, Any]:
    trial = paired_seconds(ours, other, 1).sum()
    pairs = paired_seconds(ours, other, int(np.clip(seconds / trial, 6, 100)))
    ratio, low, high = median_interval(pairs[:, 0] / pairs[:, 1])
    median, other_median = np.median(pairs, axis=0).tolist()
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "pairs": len(pairs),
        "seconds": median,
        "other_seconds": other_median,
        "other_peak_bytes": step_peak_bytes(other),
        "other_product_share": product_share(other),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line: measure, print, and write one JSON line a comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_speed", description="Our MoE layer's speed.")
    parser.add_argument("--grid", choices=GRIDS, default="corners", help="default: %(default)s")
    parser.add_argument("--others", nargs="+", choices=("plain", *IMPLEMENTATIONS), default=("plain", *IMPLEMENTATIONS))
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU time of a comparison, default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("outputs/layer_speed.jsonl"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    where, rows = {"machine": machine(), "torch": torch.__version__, "transformers": version("transformers")}, []
    for size in GRIDS[options.grid]:
        for row in compare(size, options.others, options.seconds):
            print(line(row), flush=True)
            rows.append(json.dumps(row | where))
            # after every comparison: the full grid takes hours
            write_text_atomically(options.output, "\n".join(rows) + "\n")


def line(row: dict[str, Any]) -> str:
    """A comparison as it is read: below 1 ours is faster, or smaller."""
    size = f"D {row['dim']:3} E {row['num_experts']:2} T {row['num_tokens']} K {row['top_k']} {row['load']:7}"
    if "left_out" in row:
        return f"{size} {row['other']:10} left out: {row['left_out']}"
    memory = row["peak_bytes"] / row["other_peak_bytes"]
    return (
        f"{size} {row['other']:10} time {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] memory {memory:.3f} "
        f"products {row['product_share']:.0%} / {row['other_product_share']:.0%}"
    )


if __name__ == "__main__":
    main()
