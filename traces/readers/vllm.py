"""vLLM's `routed_experts` of a request, (T, L, K), saved with `numpy.save`: one file a request.

As its documentation describes the output. A layer of zeros is taken for one without a router, whose part of the buffer
stays as it was allocated: with K > 1 no token can have chosen expert 0 twice.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Integer

from traces.load import LoadTrace
from traces.readers.assemble import in_steps, integers, traces_of_choices
from traces.routing import RoutingTrace


def read(
    path: Path, files: list[Path], *, num_experts: int | None = None, tokens_per_step: int | None = None
) -> tuple[LoadTrace, RoutingTrace]:
    """Each file is a step, or with `tokens_per_step` all their tokens in order are cut into steps.

    Without `num_experts`, E is one more than the highest expert chosen.

    Raises:
        ValueError: a file is damaged or holds something else, or files do not belong together.
    """
    blocks = [_read(file) for file in files]
    return traces_of_choices(path, "vllm", in_steps(path, blocks, tokens_per_step), num_experts)


def _read(file: Path) -> Integer[np.ndarray, "L T K"]:
    try:
        found = np.load(file, allow_pickle=False)
    # damaged bytes make numpy raise more kinds than can be listed
    except Exception as error:
        raise ValueError(f"{file}: not a numpy array without objects ({error})") from None
    chosen_LTK = integers(f"{file}: routed_experts", found, "T L K").swapaxes(0, 1)
    if chosen_LTK.shape[2] == 1:
        return chosen_LTK
    without_router = ~chosen_LTK.any(axis=(1, 2), keepdims=True)
    return np.where(without_router, -1, chosen_LTK.astype(np.int64))
