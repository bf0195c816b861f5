"""What every rank observed, brought to the one that writes it down."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from routers.step_sum import num_ranks


def on_first_rank(mine: Shaped[Tensor, "*shape"]) -> list[Tensor] | None:
    """Every rank's tensor of one shape, on rank 0; None on the others. All ranks must call it."""
    if num_ranks() == 1:
        return [mine]
    parts = [torch.empty_like(mine) for _ in range(num_ranks())] if dist.get_rank() == 0 else None
    dist.gather(mine.contiguous(), parts, dst=0)
    return parts


def slowest(seconds: float, device: torch.device) -> float:
    """The most seconds that any rank took. All ranks of a process group must call it."""
    most = torch.tensor(seconds, dtype=torch.float32, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)
