"""Router traces of Megatron, `router_trace_rank{r}.jsonl`: one JSON object a line for each layer of each micro-batch.

Fields, as described by those who write such traces (no Megatron release documents them): `step`, `block` (of the model:
a number or a name), `layer` (in its block), `rank`, `topk` (K) and `top_indices`, the K experts of each of the rank's
tokens. Lines of one step, layer and rank are micro-batches and follow one another. A layer that several ranks hold has
other tokens on each; the i-th of a layer's ranks is source device i, so pipeline stages, which see the same tokens in
other layers, fall together.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.load import LoadTrace
from traces.readers.assemble import integers, traces_of_choices, whole_number
from traces.routing import RoutingTrace

FIELDS = ("step", "block", "layer", "rank", "topk", "top_indices")
# a block's number or name: numbers come before names
Layer = tuple[tuple[int, int | str], int]
# the micro-batches (T, K) of each rank
Ranks = dict[int, list[np.ndarray]]


def read(path: Path, files: list[Path], *, num_experts: int | None = None) -> tuple[LoadTrace, RoutingTrace]:
    """Read the traces of all ranks; without `num_experts`, E is one more than the highest expert chosen.

    Raises:
        ValueError: a line is damaged or lacks a field, or a step lacks a layer or tokens that another has.
    """
    steps: dict[int, dict[Layer, Ranks]] = {}
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if line.strip():
                _add(f"{file}: line {number}", line, steps)
    if not steps:
        raise ValueError(f"{path}: no line in any file")
    layers = sorted({layer for found in steps.values() for layer in found})
    chosen = {step: _devices(f"{path}: step {step}", found, layers) for step, found in steps.items()}
    return traces_of_choices(path, "megatron", chosen, num_experts)


def _add(where: str, line: bytes, steps: dict[int, dict[Layer, Ranks]]) -> None:
    row = _parse(where, line)
    step, number, rank, top_k = (
        whole_number(f"{where}: {field}", row[field]) for field in ("step", "layer", "rank", "topk")
    )
    block = row["block"]
    layer = (1, block) if isinstance(block, str) else (0, whole_number(f"{where}: block", block))
    # a micro-batch may hold no token, and then does not say K itself
    listed = np.empty((0, top_k), int) if row["top_indices"] == [] else row["top_indices"]
    chosen_TK = integers(f"{where}: top_indices", listed, "T K")
    if chosen_TK.shape[1] != top_k:
        raise ValueError(f"{where}: topk is {top_k}, top_indices has {chosen_TK.shape[1]} a token")
    steps.setdefault(step, {}).setdefault((layer, number), {}).setdefault(rank, []).append(chosen_TK)


def _parse(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must hold an object, got {type(row).__name__}")
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    return row


def _devices(where: str, found: dict[Layer, Ranks], layers: list[Layer]) -> list[np.ndarray]:
    """Choices (L, T, K) of each source device in one step."""
    for layer in layers:
        if layer not in found:
            raise ValueError(f"{where} lacks layer {layer[1]} of block {layer[0][1]}")
    by_layer = [_joined(where, layer, found[layer]) for layer in layers]
    shapes = [[block.shape for block in blocks] for blocks in by_layer]
    for layer, shape in zip(layers, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"{where}: top_indices of layer {layer[1]}, block {layer[0][1]}, has {shape} by rank, "
                f"the first layer {shapes[0]}"
            )
    return [np.stack(blocks) for blocks in zip(*by_layer, strict=True)]


def _joined(where: str, layer: Layer, ranks: Ranks) -> list[np.ndarray]:
    joined = []
    for rank in sorted(ranks):
        widths = {batch.shape[1] for batch in ranks[rank]}
        if len(widths) != 1:
            raise ValueError(f"{where}: topk of layer {layer[1]}, rank {rank}, changes: {sorted(widths)}")
        joined.append(np.concatenate(ranks[rank]))
    return joined
