"""From what a dump holds to our traces: numbers and arrays are checked, and errors name file and field."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from traces.load import LoadTrace, TraceSource
from traces.routing import RoutingTrace

# trace folders store an expert's number in 16 bits; a larger one is damage, and arrays are sized by it
MOST_EXPERTS = 2**15
# source_device of choices: for each step the experts (L, T, K) of each device's tokens
Blocks = Mapping[int, Sequence[np.ndarray]]


def whole_number(where: str, value: object) -> int:
    """The value, where it is an integer of 64 bits that is not negative.

    Raises:
        ValueError: it is not; `where` names file and field.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{where} must be a whole number, not negative, got {value!r:.100}")
    return value


def integers(where: str, value: object, letters: str) -> np.ndarray:
    """An array of integers with one dimension for each letter, from whatever numpy can see as one.

    Raises:
        ValueError: it is none; `where` names file and field.
    """
    try:
        array = np.asarray(value)
    # foreign objects raise whatever they like
    except Exception as error:
        raise ValueError(f"{where} must be integers ({letters}), got no array ({error})") from None
    if array.ndim != len(letters.split()) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{where} must be integers ({letters}), got {array.dtype} {array.shape}")
    return array


def load_trace(
    path: Path,
    framework: str,
    step: Integer[np.ndarray, " S"],
    tokens: Integer[np.ndarray, "S L E"],
    top_k: int | None,
) -> LoadTrace:
    """Counts as a trace. Steps in which nothing was routed are left out, their numbers with them.

    Where a dump does not say K, each routed pair counts as a token with K = 1: the product T * K, on which proportions
    rest, is right, and the sampling floor a little too high.

    Raises:
        ValueError: no token at all, more experts than can be, or what `LoadTrace` refuses.
    """
    routed_S = tokens.any(axis=(1, 2))
    if not routed_S.any():
        raise ValueError(f"{path}: no step holds any token")
    _check_number(path, tokens.shape[2])
    tokens = tokens[routed_S].astype(np.int64)
    try:
        return LoadTrace(step[routed_S].astype(np.int64), tokens, _source(path, framework, tokens, top_k or 1))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def traces_of_choices(
    path: Path, framework: str, chosen: Blocks, num_experts: int | None = None
) -> tuple[LoadTrace, RoutingTrace]:
    """Choices as traces.

    Args:
        path: named in errors.
        framework: named in the source.
        chosen: step -> for each source device the experts (L, T, K) of its tokens, -1 for none. T may differ from
            step to step; up to a device's largest T, rows of -1 are filled in.
        num_experts: E; without it, one more than the highest expert chosen.

    Raises:
        ValueError: no token, layers, K or devices that differ from step to step, an expert outside -1..E-1, or one
            that a token chose twice.
    """
    blocks = [chosen[step] for step in sorted(chosen)]
    if not any(block.size for devices in blocks for block in devices):
        raise ValueError(f"{path}: no step holds any token")
    kinds = {(len(devices), block.shape[0], block.shape[2]) for devices in blocks for block in devices}
    if len(kinds) != 1:
        raise ValueError(f"{path}: steps differ in (devices, layers, top-k): {sorted(kinds)}")
    num_experts = _num_experts(path, blocks, num_experts)
    width_G = np.max([[block.shape[1] for block in devices] for devices in blocks], axis=0)
    experts_SLTK = _side_by_side(blocks, width_G)
    _refuse_doubles(path, sorted(chosen), experts_SLTK)
    step, device_T = np.array(sorted(chosen), np.int64), np.repeat(np.arange(len(width_G)), width_G)
    bare = TraceSource("", "", 0, 1, 1, "", "")
    tokens_SLE = RoutingTrace(step, experts_SLTK, device_T, num_experts, bare).loads()
    loads = load_trace(path, framework, step, tokens_SLE, experts_SLTK.shape[-1])
    return loads, RoutingTrace(step, experts_SLTK, device_T, num_experts, loads.source)


def in_steps(path: Path, blocks: Sequence[np.ndarray], tokens_per_step: int | None) -> dict[int, list[np.ndarray]]:
    """Steps for a dump that has none: each file (L, T, K) is one, or all tokens in order are cut into equal ones.

    The last one may hold fewer tokens.

    Raises:
        ValueError: tokens_per_step is below 1, or files that are to be joined differ in layers or K.
    """
    if tokens_per_step is None:
        return {step: [block] for step, block in enumerate(blocks)}
    if tokens_per_step < 1:
        raise ValueError(f"tokens_per_step must be at least 1, got {tokens_per_step}")
    if len({block.shape[::2] for block in blocks}) != 1:
        raise ValueError(f"{path}: files differ in (layers, top-k): {sorted({block.shape[::2] for block in blocks})}")
    all_LTK = np.concatenate(blocks, axis=1)
    starts = range(0, all_LTK.shape[1], tokens_per_step)
    return {step: [all_LTK[:, start : start + tokens_per_step]] for step, start in enumerate(starts)}


def _num_experts(path: Path, blocks: Sequence[Sequence[np.ndarray]], num_experts: int | None) -> int:
    filled = [block for devices in blocks for block in devices if block.size]
    low, high = min(int(block.min()) for block in filled), max(int(block.max()) for block in filled)
    num_experts = max(high + 1, 1) if num_experts is None else num_experts
    _check_number(path, num_experts)
    if low < -1 or high >= num_experts:
        raise ValueError(f"{path}: experts must lie in 0..{num_experts - 1}, or -1 for none; got {low}..{high}")
    return num_experts


def _check_number(path: Path, num_experts: int) -> None:
    if not 0 < num_experts <= MOST_EXPERTS:
        raise ValueError(f"{path}: the number of experts must lie in 1..{MOST_EXPERTS}, got {num_experts}")


def _side_by_side(blocks: Sequence[Sequence[np.ndarray]], width_G: np.ndarray) -> Int[np.ndarray, "S L T K"]:
    num_layers, _, top_k = blocks[0][0].shape
    experts_SLTK = np.full((len(blocks), num_layers, width_G.sum(), top_k), -1, np.int16)
    start_G = np.cumsum(width_G) - width_G
    for experts_LTK, devices in zip(experts_SLTK, blocks, strict=True):
        for start, block_LTK in zip(start_G, devices, strict=True):
            experts_LTK[:, start : start + block_LTK.shape[1]] = block_LTK
    return experts_SLTK


def _refuse_doubles(path: Path, steps: list[int], experts_SLTK: Int[np.ndarray, "S L T K"]) -> None:
    for step, experts_LTK in zip(steps, experts_SLTK, strict=True):
        in_order = np.sort(experts_LTK, axis=-1)
        double = np.argwhere((in_order[..., 1:] == in_order[..., :-1]) & (in_order[..., 1:] >= 0))
        if len(double):
            layer, token, choice = double[0]
            expert = in_order[layer, token, choice]
            raise ValueError(f"{path}: step {step}, layer {layer}, token {token} has expert {expert} twice")


def _source(path: Path, framework: str, tokens_SLE: Int[np.ndarray, "S L E"], top_k: int) -> TraceSource:
    # a layer without a router holds nothing, and may be among the others
    pairs_S = tokens_SLE.sum(-1).max(-1)
    return TraceSource(
        model=path.stem,
        router=framework,
        seed=0,
        tokens_per_step=max(1, round(float(np.median(pairs_S)) / top_k)),
        top_k=top_k,
        data_fingerprint=hashlib.sha256(np.ascontiguousarray(tokens_SLE).tobytes()).hexdigest()[:16],
        version="foreign-1",
    )
