"""Routing dumps of other frameworks, recognised by their files' names and read without executing anything."""

import inspect
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from traces.load import LoadTrace
from traces.readers import flame, hugging_face, megatron, sglang, tensorrt_llm, vllm
from traces.routing import RoutingTrace


class Format(NamedTuple):
    """A format's name, its files', and what reads them: `read(path, files, **options)`."""

    name: str
    patterns: tuple[str, ...]
    read: Callable[..., tuple[LoadTrace, RoutingTrace | None]]


# a file belongs to the first format that its name fits
FORMATS = (
    Format("SGLang expert distribution", ("*.pt",), sglang.read),
    Format("Megatron router trace", ("router_trace_rank*.jsonl",), megatron.read),
    Format("vLLM routed experts", ("*.npy",), vllm.read),
    Format("TensorRT-LLM expert statistics", ("rank*.safetensors",), tensorrt_llm.read),
    Format("FLAME-MoE routing table", ("*.parquet",), flame.read),
    Format("Hugging Face router logits", ("*.npz", "*.safetensors"), hugging_face.read),
)


def read_foreign(path: str | Path, **options: int) -> tuple[LoadTrace, RoutingTrace | None]:
    """Read a dump: a file, or a folder with all files of one dump and none of another format.

    Args:
        path: the file or folder.
        options: what the format does not say itself; each reader in `traces.readers` names those it takes:
            `num_experts` E, `top_k` K, `tokens_per_step` T.

    Returns:
        The loads, and the routings where the dump holds choices and not only counts.

    Raises:
        ValueError: no such file, an unknown format, a damaged file (with its name and the field), or an option that
            the format does not take.
        ImportError: the format needs a package that is not installed.
    """
    found, files = _recognise(Path(path))
    known = [name for name, one in inspect.signature(found.read).parameters.items() if one.kind is one.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = ", ".join(known) or "no options"
        raise ValueError(f"{path}: a {found.name} has no use for {', '.join(unknown)}; it takes {takes}")
    return found.read(Path(path), files, **options)


def _recognise(path: Path) -> tuple[Format, list[Path]]:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "manifest.json").exists():
        raise ValueError(f"{path}: a trace folder of our own; traces.store.read_loads reads it")
    files = sorted((file for file in path.iterdir() if file.is_file()), key=_natural) if path.is_dir() else [path]
    by_format: dict[Format, list[Path]] = {}
    for file in files:
        fitting = next((one for one in FORMATS if _fits(file, one)), None)
        if fitting is not None:
            by_format.setdefault(fitting, []).append(file)
    if len(by_format) == 1:
        return by_format.popitem()
    if by_format:
        raise ValueError(f"{path}: files of several formats: {', '.join(one.name for one in by_format)}; name one file")
    known = "; ".join(f"{one.name}: {', '.join(one.patterns)}" for one in FORMATS)
    raise ValueError(f"{path}: no file of a known format ({known})")


def _fits(file: Path, one: Format) -> bool:
    # what a kill left of an unfinished write starts with a dot
    return not file.name.startswith(".") and any(fnmatch(file.name, pattern) for pattern in one.patterns)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Order in which rank 10 comes after rank 2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name)]
