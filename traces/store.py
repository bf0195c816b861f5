"""The trace folder: one JSON manifest and compressed numpy chunks, each written whole or not at all.

    trace/manifest.json                     schema, shape and source
    trace/loads-00000000-00000499.npz       step (s,), tokens (s, L, E)
    trace/routing-00000100.npz              expert_indices (L, T, K), source_device (T,)

Chunk files were chosen over zarr and over one growing file: numpy alone reads them, a killed run loses at
most the chunk in memory, and a recording run never touches a finished chunk: what is on disk can be read
at any moment. No pickle: a trace from a stranger cannot execute code. Three lines read one:

    files = sorted(Path("trace").glob("loads-*.npz"))
    tokens = np.concatenate([np.load(file)["tokens"] for file in files])  # (S, L, E)
    proportion = tokens / tokens.sum(-1, keepdims=True)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from traces.atomic import write_atomically, write_text_atomically
from traces.load import LoadTrace, TraceSource
from traces.routing import RoutingTrace

FORMAT = "moelab-trace"
SCHEMA = 1


class TraceWriter:
    """Adds chunks of loads and sampled routings to a trace folder.

    Args:
        folder: made where it is missing; an existing trace of the same source is continued.
        source: what produces the trace.
        num_layers: L.
        num_experts: E.

    Raises:
        ValueError: the folder holds a trace of another source, shape or format.
    """

    def __init__(self, folder: Path, source: TraceSource, num_layers: int, num_experts: int) -> None:
        self.folder = Path(folder)
        self._shape = (num_layers, num_experts)
        self._source = source
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "num_layers": num_layers,
            "num_experts": num_experts,
            "source": asdict(source),
            "fingerprint": source.fingerprint(),
        }
        if (self.folder / "manifest.json").exists():
            _refuse_other(self.folder, manifest)
        else:
            write_text_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def write_loads(self, step: np.ndarray, tokens: np.ndarray) -> None:
        """Write one chunk: steps (s,), increasing and after all earlier ones, and counts (s, L, E).

        Raises:
            ValueError: what `LoadTrace` refuses, another shape, no step, or steps that are recorded already.
        """
        if step.size == 0 or tokens.shape[1:] != self._shape:
            raise ValueError(
                f"{self.folder}: {step.size} steps with counts {tokens.shape}, the trace holds "
                f"at least one step of {self._shape} (L, E)"
            )
        chunk = _load_trace(self.folder, step, tokens, self._source)
        last = max((_span(file)[1] for file in self.folder.glob("loads-*.npz")), default=-1)
        if step[0] <= last:
            raise ValueError(
                f"{self.folder}: step {step[0]} comes after step {last}, already recorded; "
                f"rewind({step[0]}) before recording it again"
            )
        _write_loads(self.folder, chunk.step.astype(np.int64), chunk.tokens.astype(np.int32))

    def write_routing(self, step: int, expert_indices: np.ndarray, source_device: np.ndarray) -> None:
        """Write one sampled step: expert_indices (L, T, K) with -1 for none, source_device (T,).

        Raises:
            ValueError: what `RoutingTrace` refuses, or other layers than the trace has.
        """
        path = self.folder / f"routing-{step:08d}.npz"
        chunk = {"expert_indices": expert_indices, "source_device": source_device}
        _routing_trace(path, [step], [chunk], self._shape, self._source)
        indices, device = expert_indices.astype(np.int16), source_device.astype(np.int16)
        write_atomically(path, lambda file: np.savez_compressed(file, expert_indices=indices, source_device=device))

    def rewind(self, step: int) -> None:
        """Forget everything recorded at `step` or later: a resumed run records these steps again."""
        for file in self.folder.glob("routing-*.npz"):
            if _sampled_step(file) >= step:
                file.unlink()
        for file in sorted(self.folder.glob("loads-*.npz"), key=_span):
            first, last = _span(file)
            if last < step:
                continue
            if first < step:
                recorded, tokens = _read_chunk(file, self._shape)
                known = recorded < step
                _write_loads(self.folder, recorded[known], tokens[known])
            file.unlink()


def read_loads(folder: Path) -> LoadTrace:
    """Read the loads of a trace folder.

    Raises:
        ValueError: no trace there, a foreign or newer format, a truncated chunk, chunks that overlap or one that is
            missing between two others.
    """
    manifest = read_manifest(folder)
    shape = (manifest["num_layers"], manifest["num_experts"])
    files = sorted(Path(folder).glob("loads-*.npz"), key=_span)
    if not files:
        raise ValueError(f"{folder}: the trace holds no recorded step yet (no loads-*.npz)")
    steps, tokens = zip(*(_read_chunk(file, shape) for file in files), strict=True)
    _refuse_gaps(files, steps)
    source = TraceSource(**manifest["source"])
    return _load_trace(folder, np.concatenate(steps), np.concatenate(tokens), source)


def _refuse_gaps(files: Sequence[Path], steps: Sequence[np.ndarray]) -> None:
    """A chunk that was lost shows as a step between two others that is longer than any inside one."""
    widest = max((int(np.diff(one).max()) for one in steps if len(one) > 1), default=None)
    for before, after, file in zip(steps[:-1], steps[1:], files[1:], strict=True):
        if widest is not None and after[0] - before[-1] > widest:
            raise ValueError(
                f"{file.parent}: the steps between {before[-1]} and {after[0]} are missing (a chunk was lost); record "
                "the trace again"
            )


def read_routings(folder: Path) -> RoutingTrace:
    """Read the sampled routings of a trace folder.

    Raises:
        ValueError: as `read_loads`, or no routing was sampled.
    """
    manifest = read_manifest(folder)
    files = sorted(Path(folder).glob("routing-*.npz"), key=_sampled_step)
    if not files:
        raise ValueError(f"{folder}: no routing was sampled (no routing-*.npz); set trace.routing_every")
    chunks = [_load_chunk(file, ("expert_indices", "source_device")) for file in files]
    shape = (manifest["num_layers"], manifest["num_experts"])
    steps = [_sampled_step(file) for file in files]
    return _routing_trace(folder, steps, chunks, shape, TraceSource(**manifest["source"]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a trace folder; ValueError says what is wrong with it."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        inside = Path(folder) / "trace"
        hint = f"; did you mean {inside}?" if (inside / "manifest.json").exists() else ""
        raise ValueError(f"{folder}: no trace there (manifest.json is missing){hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a JSON manifest ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a {FORMAT} manifest")
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {manifest.get('schema')!r}, this version reads schema {SCHEMA}")
    _check_fields(path, manifest)
    return manifest


def _check_fields(path: Path, manifest: dict[str, Any]) -> None:
    sizes = (manifest.get("num_layers"), manifest.get("num_experts"))
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{path}: num_layers and num_experts must be positive integers, got {sizes}")
    source = manifest.get("source")
    expected = set(TraceSource.__dataclass_fields__)
    if not isinstance(source, dict) or set(source) != expected:
        raise ValueError(f"{path}: source must have exactly the fields {sorted(expected)}, got {source!r}")
    for name, field in TraceSource.__dataclass_fields__.items():
        if type(source[name]) is not field.type:
            raise ValueError(f"{path}: source.{name} must be {field.type.__name__}, got {source[name]!r}")


def _refuse_other(folder: Path, manifest: dict[str, Any]) -> None:
    found = read_manifest(folder)
    for key in ("num_layers", "num_experts", "source"):
        if found[key] != manifest[key]:
            raise ValueError(
                f"{folder}: holds a trace with {key} = {found[key]}, this run has {manifest[key]}; "
                "choose another folder"
            )


def _span(file: Path) -> tuple[int, int]:
    try:
        first, last = file.stem.split("-")[1:]
        return int(first), int(last)
    except ValueError:
        raise ValueError(f"{file}: chunks are named loads-FIRST-LAST.npz") from None


def _sampled_step(file: Path) -> int:
    try:
        return int(file.stem.removeprefix("routing-"))
    except ValueError:
        raise ValueError(f"{file}: sampled routings are named routing-STEP.npz") from None


def _load_trace(path: Path, step: np.ndarray, tokens: np.ndarray, source: TraceSource) -> LoadTrace:
    try:
        return LoadTrace(step, tokens, source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _routing_trace(
    path: Path,
    steps: list[int],
    chunks: list[dict[str, np.ndarray]],
    shape: tuple[int, int],
    source: TraceSource,
) -> RoutingTrace:
    shapes = {chunk["expert_indices"].shape for chunk in chunks}
    devices = chunks[0]["source_device"]
    if len(shapes) > 1 or any(not np.array_equal(chunk["source_device"], devices) for chunk in chunks):
        raise ValueError(f"{path}: sampled steps differ in shape or in source_device: {sorted(shapes)}")
    expert_indices = np.stack([chunk["expert_indices"] for chunk in chunks])
    try:
        trace = RoutingTrace(np.asarray(steps, np.int64), expert_indices, devices, shape[1], source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if expert_indices.shape[1] != shape[0]:
        raise ValueError(f"{path}: routings of {expert_indices.shape[1]} layers, the manifest says {shape[0]}")
    return trace


def _write_loads(folder: Path, step: np.ndarray, tokens: np.ndarray) -> None:
    path = folder / f"loads-{step[0]:08d}-{step[-1]:08d}.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, step=step, tokens=tokens))


def _read_chunk(file: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    chunk = _load_chunk(file, ("step", "tokens"))
    step, tokens = chunk["step"], chunk["tokens"]
    if step.ndim != 1 or tokens.shape != (len(step), *shape):
        raise ValueError(f"{file}: steps {step.shape} and counts {tokens.shape}, the manifest says {shape} (L, E)")
    if len(step) == 0 or (step[0], step[-1]) != _span(file):
        raise ValueError(f"{file}: the steps inside are not those of its name")
    return step, tokens


def _load_chunk(file: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            chunk = {key: archive[key] for key in keys}
    # damaged bytes make numpy, zipfile and the decompressors raise more kinds than can be listed
    except Exception as error:
        raise ValueError(f"{file}: truncated or not a trace chunk ({error}); record the trace again") from None
    return chunk
