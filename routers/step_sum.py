"""What a router saw over a whole optimiser step: all its micro-batches and, through `sum_over_ranks`, all ranks."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class StepSum:
    """Sum of tensors of one shape from step to step.

    Not a buffer of the module: DistributedDataParallel would overwrite each rank's own part with rank 0's.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, part: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Add a micro-batch's part, without its gradient, and return the sum so far."""
        detached = part.detach()
        self._total = detached if self._total is None else self._total + detached
        return self._total

    def take(self) -> Tensor | None:
        """The sum since the last call, which is forgotten; None where nothing was added."""
        total, self._total = self._total, None
        return total


def sum_over_ranks(part: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sum of every rank's part, without a gradient; the part itself where there is one. All ranks must call it."""
    if num_ranks() == 1:
        return part
    total = part.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def total_over_ranks(part: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`sum_over_ranks` with a gradient, for a loss of the total that every rank computes alike.

    Gradients are averaged over ranks, and the loss is no mean of theirs: each rank's part must count that often.
    """
    if num_ranks() == 1:
        return part
    scaled = part * num_ranks()
    return scaled + (sum_over_ranks(part) - scaled).detach()


def num_ranks() -> int:
    """Processes that train together; 1 where none were brought together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1
