"""A placement in the files from which serving engines take theirs, each written whole or not at all.

Slot c of device g becomes physical expert g * C + c. None of these formats has a word for an empty slot.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from placement.topology import Placement
from traces.atomic import write_text_atomically


def write_sglang(path: Path, placement: Placement) -> None:
    """JSON for SGLang's `--init-expert-location` (as of 0.4.6 to 0.5): `physical_to_logical_map` (L, P).

    SGLang wants a row for each of the model's layers, those without experts too; its own dumps have them.

    Raises:
        ValueError: a slot is empty.
    """
    rows = ",\n".join(f"  {json.dumps(row)}" for row in _physical_to_logical(placement).tolist())
    write_text_atomically(path, f'{{"physical_to_logical_map": [\n{rows}\n]}}\n')


def write_tensorrt_llm(path: Path, placement: Placement, layers: Sequence[int] | None = None) -> None:
    """YAML for TensorRT-LLM's MoE load balancer (as of 1.0): `num_slots` over all devices and, by layer,
    `initial_global_assignments`; `layer_updates_per_iter` is 0, a placement that stays.

    Args:
        path: written.
        placement: all layers with experts.
        layers: their numbers in the model; 0, 1, ... when None.

    Raises:
        ValueError: a slot is empty, or `layers` has another length than the placement, or a number twice.
    """
    physical_LP = _physical_to_logical(placement)
    numbers = _layer_numbers(placement, layers)
    lines = [f"  {layer}: {row}" for layer, row in zip(numbers, physical_LP.tolist(), strict=True)]
    head = [f"num_slots: {physical_LP.shape[1]}", "initial_global_assignments:"]
    write_text_atomically(path, "\n".join([*head, *lines, "layer_updates_per_iter: 0", ""]))


def write_vllm_ascend(path: Path, placement: Placement, layers: Sequence[int] | None = None) -> None:
    """JSON for vllm-ascend's `expert_map_path` (as of 0.9): experts by layer and device.

    Args:
        path: written.
        placement: all layers with experts.
        layers: their `layer_id`; 0, 1, ... when None.

    Raises:
        ValueError: as `write_tensorrt_llm`.
    """
    _physical_to_logical(placement)
    layer_list = [
        {
            "layer_id": layer,
            "device_count": placement.num_devices,
            "device_list": [{"device_id": g, "device_expert": held} for g, held in enumerate(slots_GC.tolist())],
        }
        for layer, slots_GC in zip(_layer_numbers(placement, layers), placement.slots, strict=True)
    ]
    content = {"moe_layer_count": placement.num_layers, "layer_list": layer_list}
    write_text_atomically(path, json.dumps(content, indent=1) + "\n")


def _physical_to_logical(placement: Placement) -> Integer[np.ndarray, "L P"]:
    empty = np.argwhere(placement.slots < 0)
    if len(empty):
        layer, device, slot = empty[0]
        raise ValueError(
            f"layer {layer}: slot {slot} of device {device} is empty ({len(empty)} in all), which the format cannot "
            "say; plan with as many slots as experts and replicas"
        )
    return placement.slots.reshape(placement.num_layers, -1)


def _layer_numbers(placement: Placement, layers: Sequence[int] | None) -> list[int]:
    numbers = list(range(placement.num_layers) if layers is None else layers)
    if len(set(numbers)) != placement.num_layers or len(numbers) != placement.num_layers or min(numbers) < 0:
        raise ValueError(f"layers must be {placement.num_layers} different numbers from 0, got {numbers}")
    return numbers


# by the name of an engine: the file that it takes, and what writes it
FORMATS = {
    "sglang": ("expert_location.json", write_sglang),
    "tensorrt_llm": ("load_balancer.yaml", write_tensorrt_llm),
    "vllm_ascend": ("expert_map.json", write_vllm_ascend),
}


def file_format(engine: str) -> tuple[str, Callable[[Path, Placement], None]]:
    """The name of the file that an engine takes, and what writes it; ValueError where none is known."""
    if engine not in FORMATS:
        raise ValueError(f"plans are written for {', '.join(FORMATS)}, got {engine!r}")
    return FORMATS[engine]
