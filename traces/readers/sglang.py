"""SGLang's expert distribution dumps, `expert_distribution_recorder_*.pt`, as of versions 0.4.6 to 0.5.

Mode `stat`: `logical_count` (S, L, E), already summed over ranks. Modes `per_pass` and `per_token`: one file a rank
with `records`, each with `forward_pass_id`, `rank`, `gatherer_key`, `global_physical_count` (L, P) and, per token,
`topk_ids_of_layer` (L, T, 8) of physical experts, -1 for none; and `last_physical_to_logical_map` (L, P). The map may
have changed while recording; SGLang dumps the last one only, so record between two re-balancings.

Layers are all of the model's: those without experts hold no token and stay, so that layer numbers are SGLang's own
when a plan is written back. Ranks are taken to hold different tokens (data-parallel attention).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from traces.load import LoadTrace
from traces.readers.assemble import MOST_EXPERTS, integers, load_trace, traces_of_choices, whole_number
from traces.routing import RoutingTrace


class Part(NamedTuple):
    """What one rank recorded in one forward pass (of one half of its batch, where SGLang overlaps two)."""

    step: int
    rank: int
    gatherer: str
    tokens: Integer[np.ndarray, "L E"]
    chosen: Integer[np.ndarray, "L T K"] | None


def read(path: Path, files: list[Path], *, top_k: int | None = None) -> tuple[LoadTrace, RoutingTrace | None]:
    """Read dumps of one run, all in one mode; several `stat` files follow one another.

    Args:
        path: named in errors about all files.
        files: the dumps.
        top_k: K, where the dump does not say it: all modes but `per_token`.

    Raises:
        ValueError: a file is damaged or lacks a field, or files do not belong together.
        ImportError: torch is not installed.
    """
    dumps = [(file, _load(file)) for file in files]
    if all("logical_count" in dump for _, dump in dumps):
        return _read_counts(path, dumps, top_k), None
    if all("records" in dump for _, dump in dumps):
        parts = [part for file, dump in dumps for part in _read_records(file, dump)]
        return _join(path, parts, top_k)
    found = sorted({str(field) for _, dump in dumps for field in dump})
    raise ValueError(f"{path}: every file must hold logical_count, or every file records; found {found}")


def _load(file: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ImportError(f"{file}: SGLang's dumps are torch files; install torch to read them") from None
    try:
        dump = torch.load(file, map_location="cpu", weights_only=True)
    # damaged bytes make torch, zipfile and pickle raise more kinds than can be listed
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file}: not a torch file that can be read without executing code ({reason})") from None
    if not isinstance(dump, dict):
        raise ValueError(f"{file}: must hold a dictionary, got {type(dump).__name__}")
    return dump


def _read_counts(path: Path, dumps: list[tuple[Path, dict[str, Any]]], top_k: int | None) -> LoadTrace:
    counts = []
    for file, dump in dumps:
        # early versions summed over the steps
        letters = "L E" if getattr(dump["logical_count"], "ndim", 3) == 2 else "S L E"
        count = integers(f"{file}: logical_count", dump["logical_count"], letters)
        counts.append(count.reshape(-1, *count.shape[-2:]))
    shapes = {count.shape[1:] for count in counts}
    if len(shapes) != 1:
        raise ValueError(f"{path}: logical_count differs in (L, E) from file to file: {sorted(shapes)}")
    tokens = np.concatenate(counts)
    return load_trace(path, "sglang", np.arange(len(tokens)), tokens, top_k)


def _read_records(file: Path, dump: dict[str, Any]) -> list[Part]:
    if "last_physical_to_logical_map" not in dump:
        raise ValueError(f"{file}: records without last_physical_to_logical_map")
    logical_LP = integers(f"{file}: last_physical_to_logical_map", dump["last_physical_to_logical_map"], "L P")
    if logical_LP.size == 0 or not 0 <= logical_LP.min() <= logical_LP.max() < MOST_EXPERTS:
        raise ValueError(
            f"{file}: last_physical_to_logical_map must hold experts in 0..{MOST_EXPERTS - 1} and not be empty"
        )
    if not isinstance(dump["records"], list):
        raise ValueError(f"{file}: records must be a list, got {type(dump['records']).__name__}")
    return [_part(f"{file}: records[{i}]", record, logical_LP) for i, record in enumerate(dump["records"])]


def _part(where: str, record: Any, logical_LP: Integer[np.ndarray, "L P"]) -> Part:
    for field in ("forward_pass_id", "rank", "global_physical_count"):
        if not isinstance(record, dict) or field not in record:
            raise ValueError(f"{where}.{field} is missing")
    count_LP = integers(f"{where}.global_physical_count", record["global_physical_count"], "L P")
    if count_LP.shape != logical_LP.shape:
        raise ValueError(f"{where}.global_physical_count has {count_LP.shape}, the map {logical_LP.shape}")
    layer_L1 = np.arange(len(logical_LP))[:, None]
    tokens_LE = np.zeros((len(logical_LP), int(logical_LP.max()) + 1), np.int64)
    np.add.at(tokens_LE, (layer_L1, logical_LP), count_LP)
    return Part(
        whole_number(f"{where}.forward_pass_id", record["forward_pass_id"]),
        whole_number(f"{where}.rank", record["rank"]),
        str(record.get("gatherer_key", "")),
        tokens_LE,
        _chosen(f"{where}.topk_ids_of_layer", record, logical_LP),
    )


def _chosen(where: str, record: dict[str, Any], logical_LP: np.ndarray) -> Integer[np.ndarray, "L T K"] | None:
    if record.get("topk_ids_of_layer") is None:
        return None
    physical_LTK = integers(where, record["topk_ids_of_layer"], "L T K")
    num_layers, num_physical = logical_LP.shape
    if len(physical_LTK) != num_layers:
        raise ValueError(f"{where} has {len(physical_LTK)} layers, the map {num_layers}")
    if physical_LTK.size and not -1 <= physical_LTK.min() <= physical_LTK.max() < num_physical:
        raise ValueError(f"{where} must lie in -1..{num_physical - 1}, got {physical_LTK.min()}..{physical_LTK.max()}")
    logical_LTK = logical_LP[np.arange(num_layers)[:, None, None], physical_LTK]
    return np.where(physical_LTK >= 0, logical_LTK, -1)


def _join(path: Path, parts: list[Part], top_k: int | None) -> tuple[LoadTrace, RoutingTrace | None]:
    """Sum the counts of all ranks, and set their tokens side by side."""
    _check_complete(path, parts)
    steps = sorted({part.step for part in parts})
    by_step = {step: [part for part in parts if part.step == step] for step in steps}
    tokens_SLE = np.stack([np.sum([part.tokens for part in found], axis=0) for found in by_step.values()])
    num_experts, routing = tokens_SLE.shape[2], None
    if all(part.chosen is not None for part in parts):
        used = _used_columns(path, parts)
        chosen = {step: _by_rank(found, used) for step, found in by_step.items()}
        _, routing = traces_of_choices(path, "sglang", chosen, num_experts)
        top_k = routing.expert_indices.shape[-1]
    return load_trace(path, "sglang", np.array(steps, np.int64), tokens_SLE, top_k), routing


def _check_complete(path: Path, parts: list[Part]) -> None:
    if not parts:
        raise ValueError(f"{path}: records is empty")
    shapes = {part.tokens.shape for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"{path}: last_physical_to_logical_map differs in (L, E) from file to file: {sorted(shapes)}")
    seen: set[tuple[int, int, str]] = set()
    for part in parts:
        if part[:3] in seen:
            raise ValueError(f"{path}: forward_pass_id {part.step} of rank {part.rank} is recorded twice")
        seen.add(part[:3])
    ranks = {rank for _, rank, _ in seen}
    for step in sorted({step for step, _, _ in seen}):
        missing = ranks - {rank for other, rank, _ in seen if other == step}
        if missing:
            raise ValueError(f"{path}: forward_pass_id {step} lacks ranks {sorted(missing)}: dumps of different runs?")


def _used_columns(path: Path, parts: list[Part]) -> Bool[np.ndarray, " K"]:
    """SGLang keeps eight columns, whatever K is."""
    blocks = [part.chosen for part in parts if part.chosen is not None]
    widths = {block.shape[2] for block in blocks}
    if len(widths) != 1:
        raise ValueError(f"{path}: topk_ids_of_layer has different numbers of columns: {sorted(widths)}")
    return np.any([(block >= 0).any(axis=(0, 1)) for block in blocks], axis=0)


def _by_rank(parts: list[Part], used: Bool[np.ndarray, " K"]) -> list[np.ndarray]:
    """Choices (L, T, K) of each rank; halves of a batch follow one another."""
    ranks = sorted({part.rank for part in parts})
    blocks = [
        [part.chosen[..., used] for part in parts if part.rank == rank and part.chosen is not None] for rank in ranks
    ]
    return [np.concatenate(halves, axis=1) for halves in blocks]
