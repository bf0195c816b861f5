"""FLAME-MoE's routing tables in parquet (Kang et al., 2025, arXiv 2505.20225): `indices` and `scores` of each token.

`indices` lists a token's K experts, `scores` its router scores: of all E experts, which gives E, or of the chosen ones.
A column `layer` numbers the layers; without it each file is one layer, in order of the numbers in its name. The two
columns are as the project describes them; how layers are told apart is our reading.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from traces.load import LoadTrace
from traces.readers.assemble import in_steps, integers, traces_of_choices
from traces.routing import RoutingTrace


class Table(NamedTuple):
    """One file: experts and layer of each row, and how many scores a row has."""

    chosen: Integer[np.ndarray, "R K"]
    layer: Integer[np.ndarray, " R"] | None
    num_scores: int | None


def read(
    path: Path, files: list[Path], *, num_experts: int | None = None, tokens_per_step: int | None = None
) -> tuple[LoadTrace, RoutingTrace]:
    """All tokens are one step, or with `tokens_per_step` they are cut into steps in their order.

    Raises:
        ValueError: a file is damaged or lacks a column, or layers differ in tokens or K.
        ImportError: pyarrow is not installed.
    """
    tables = [_read(file) for file in files]
    layers = _layers(path, tables)
    shapes = [layer.shape for layer in layers]
    if len(set(shapes)) != 1:
        raise ValueError(f"{path}: indices of the layers must have the same tokens and K, got {shapes}")
    if num_experts is None:
        num_experts = _num_experts(path, tables)
    return traces_of_choices(path, "flame", in_steps(path, [np.stack(layers)], tokens_per_step), num_experts)


def _layers(path: Path, tables: list[Table]) -> list[np.ndarray]:
    """Choices (T, K) of each layer."""
    numbers = [table.layer for table in tables if table.layer is not None]
    if not numbers:
        return [table.chosen for table in tables]
    if len(numbers) < len(tables) or len({table.chosen.shape[1] for table in tables}) != 1:
        raise ValueError(f"{path}: files differ in K, or only some have the column layer")
    layer_R = np.concatenate(numbers)
    chosen_RK = np.concatenate([table.chosen for table in tables])
    # rows of a layer keep their order
    return [chosen_RK[layer_R == layer] for layer in np.unique(layer_R)]


def _num_experts(path: Path, tables: list[Table]) -> int | None:
    found = {table.num_scores for table in tables}
    if len(found) != 1:
        raise ValueError(f"{path}: scores have different lengths: {sorted(map(str, found))}")
    num_scores = found.pop()
    # as many scores as choices are those of the choices
    return num_scores if num_scores is not None and num_scores > tables[0].chosen.shape[1] else None


def _read(file: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{file}: reading it needs pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(file)
        columns = dict(zip(table.column_names, table.columns, strict=True))
    # damaged bytes make pyarrow raise more kinds than can be listed
    except Exception as error:
        raise ValueError(f"{file}: not a parquet file ({error})") from None
    if "indices" not in columns:
        raise ValueError(f"{file}: column indices is missing, found {list(columns)}")
    chosen = integers(f"{file}: indices", _matrix(f"{file}: indices", columns["indices"]), "R K")
    layer = integers(f"{file}: layer", columns["layer"], "R") if "layer" in columns else None
    num_scores = _matrix(f"{file}: scores", columns["scores"]).shape[1] if "scores" in columns else None
    return Table(chosen, layer, num_scores)


def _matrix(where: str, column: Any) -> np.ndarray:
    """A column of lists of one length as rows of an array."""
    from pyarrow.compute import call_function

    try:
        lengths = np.unique(call_function("list_value_length", [column]).to_numpy())
        values = call_function("list_flatten", [column]).to_numpy()
    # what is no list, and damaged data, make pyarrow raise several kinds
    except Exception as error:
        raise ValueError(f"{where} must hold a list for each token ({error})") from None
    # a missing list turns lengths into NaN, a missing number integers into floats, which the caller refuses
    if len(lengths) != 1 or not lengths[0] > 0:
        raise ValueError(f"{where} must hold lists of one length, got {lengths.tolist()[:5]}")
    return values.reshape(-1, int(lengths[0]))
