"""What every rank observed, brought to the one that writes it down."""

import time

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int, Integer, Shaped
from torch import Tensor

from routers.step_sum import num_ranks
from traces.routing import ExpertSets, count_sets


def on_first_rank(mine: Shaped[Tensor, "*shape"]) -> list[Tensor] | None:
    """Every rank's tensor of one shape, on rank 0; None on the others. All ranks must call it."""
    if num_ranks() == 1:
        return [mine]
    parts = [torch.empty_like(mine) for _ in range(num_ranks())] if dist.get_rank() == 0 else None
    dist.gather(mine.contiguous(), parts, dst=0)
    return parts


def routing_on_first_rank(chosen: Integer[Tensor, "L T K"]) -> list[ExpertSets] | None:
    """What every rank's tokens chose, told apart by rank, on rank 0; None on the others. All ranks must call it."""
    parts = on_first_rank(chosen)
    if parts is None:
        return None
    source_T = np.repeat(np.arange(len(parts)), chosen.shape[1])
    return count_sets(torch.cat(parts, 1).cpu().numpy()[None], source_T)


def rows_between(sent: Int[Tensor, "L G"]) -> Int[np.ndarray, "L G G"]:
    """Rows by source and destination, 0 to itself, on every rank, of those that each sent. All ranks must call it."""
    me = dist.get_rank()
    rows_LGG = sent.new_zeros(len(sent), dist.get_world_size(), dist.get_world_size())
    rows_LGG[:, me] = sent
    rows_LGG[:, me, me] = 0
    dist.all_reduce(rows_LGG)
    return rows_LGG.cpu().numpy()


def slowest(seconds: float, device: torch.device) -> float:
    """The most seconds that any rank took. All ranks of a process group must call it."""
    return _extreme(seconds, device, dist.ReduceOp.MAX)


def fastest(seconds: float, device: torch.device) -> float:
    """The fewest seconds that any rank took. All ranks of a process group must call it."""
    return _extreme(seconds, device, dist.ReduceOp.MIN)


def _extreme(seconds: float, device: torch.device, which: dist.ReduceOp.RedOpType) -> float:
    found = torch.tensor(seconds, dtype=torch.float32, device=device)
    dist.all_reduce(found, which)
    return float(found)


def synchronized(device: torch.device) -> float:
    """The host's clock in seconds, once all that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
