"""TensorRT-LLM's expert statistics (EXPERT_STATISTIC_PATH): `meta_info.json` and one `rank{r}.safetensors` a rank.

As of version 1.0: the manifest holds `num_experts` and `num_experts_per_token`; each tensor, named `ITERATION_LAYER`,
holds the tokens (E,) that a rank routed to each expert. Ranks are summed; where all hold the same tokens
(tensor-parallel attention), every count is that many times too high, and proportions are right.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int

from traces.load import LoadTrace
from traces.readers.assemble import MOST_EXPERTS, integers, load_trace, whole_number

# (iteration, layer)
Key = tuple[int, int]


def read(path: Path, files: list[Path]) -> tuple[LoadTrace, None]:
    """Read the statistics of all ranks; layers are those that have experts, in order of their number.

    Raises:
        ValueError: a file is missing, damaged, or of another model, or an iteration lacks a layer that another has.
        ImportError: safetensors is not installed.
    """
    num_experts, top_k = _read_manifest(files[0].parent / "meta_info.json")
    counts: dict[Key, Int[np.ndarray, " E"]] = {}
    for file in files:
        for name, tensor in _load(file).items():
            key = _key(file, name)
            count_E = integers(f"{file}: {name}", tensor, "E")
            if count_E.shape != (num_experts,):
                raise ValueError(f"{file}: {name} has {len(count_E)} experts, meta_info.json says {num_experts}")
            counts[key] = counts.get(key, 0) + count_E.astype(np.int64)
    steps, layers = (sorted({key[i] for key in counts}) for i in range(2))
    for step in steps:
        missing = [layer for layer in layers if (step, layer) not in counts]
        if missing:
            raise ValueError(f"{path}: iteration {step} lacks layer {missing[0]}")
    if not steps:
        raise ValueError(f"{path}: no tensor in any file")
    tokens_SLE = np.stack([np.stack([counts[step, layer] for layer in layers]) for step in steps])
    return load_trace(path, "tensorrt_llm", np.array(steps, np.int64), tokens_SLE, top_k), None


def _read_manifest(file: Path) -> tuple[int, int]:
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; TensorRT-LLM writes it beside rank*.safetensors") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    fields = ("num_experts", "num_experts_per_token")
    if not isinstance(manifest, dict) or any(field not in manifest for field in fields):
        raise ValueError(f"{file}: must hold {' and '.join(fields)}")
    num_experts, top_k = (whole_number(f"{file}: {field}", manifest[field]) for field in fields)
    if not 0 < top_k <= num_experts <= MOST_EXPERTS:
        raise ValueError(f"{file}: num_experts {num_experts} with num_experts_per_token {top_k} cannot be")
    return num_experts, top_k


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise ImportError(f"{file}: reading it needs safetensors: pip install safetensors") from None
    try:
        return load_file(file)
    # damaged bytes make safetensors raise more kinds than can be listed
    except Exception as error:
        raise ValueError(f"{file}: not a safetensors file of integers ({error})") from None


def _key(file: Path, name: str) -> Key:
    parts = name.split("_")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise ValueError(f"{file}: tensors are named ITERATION_LAYER, got {name!r:.100}")
    return int(parts[0]), int(parts[1])
