"""A tensor of all experts (E, ...) and each device's slots of it (C, ...).

Replicas of an expert are equal on all their devices, as long as their gradients are summed in the same order
everywhere.
"""

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Int, Integer, Shaped
from torch import Tensor

from models.dispatch.exchange import Exchange
from models.dispatch.shard import ExpertShard


def held(whole: Shaped[Tensor, " E *expert"], shard: ExpertShard) -> Shaped[Tensor, " C *expert"]:
    """This device's slots of all experts; an empty slot holds zeros."""
    experts = torch.from_numpy(shard.slots[shard.rank].astype(np.int64)).to(whole.device)
    present = (experts >= 0).view(-1, *[1] * (whole.ndim - 1))
    return torch.where(present, whole[experts.clamp(min=0)], whole.new_zeros(()))


def gather(mine: Shaped[Tensor, " C *expert"], shard: ExpertShard) -> Shaped[Tensor, " E *expert"] | None:
    """All experts on rank 0, each from the first device that holds it; None on the other ranks. All ranks call it."""
    # after a run Lightning has moved the model to the CPU, which NCCL does not send from
    mine = mine.to(shard.address.device)
    parts = [torch.empty_like(mine) for _ in range(shard.num_devices)] if shard.rank == 0 else None
    dist.gather(mine.contiguous(), parts, group=shard.group, group_dst=0)
    if parts is None:
        return None
    return torch.cat(parts)[torch.from_numpy(first_slots(shard.slots)).to(mine.device)]


def first_slots(slots: Integer[np.ndarray, "G C"]) -> Int[np.ndarray, " E"]:
    """The first slot that holds each expert, counted over all devices."""
    experts, first = np.unique(slots, return_index=True)
    return first[experts >= 0]


def owned(shard: ExpertShard) -> Bool[np.ndarray, " C"]:
    """Whether each of this device's slots is the first that holds its expert: over all devices, each expert once."""
    mine = np.zeros(shard.slots.size, bool)
    mine[first_slots(shard.slots)] = True
    return mine.reshape(shard.slots.shape)[shard.rank]


class ReplicaSum:
    """Sums the gradients of an expert's replicas, on each device that holds one.

    Every device sends each of its replicated slots to the other holders and adds what comes in the order of the
    devices, so that replicas stay equal to the last bit.
    """

    def __init__(self, shard: ExpertShard) -> None:
        self.shard = shard
        self._sent = [shared_slots(shard.slots, shard.rank, other) for other in range(shard.num_devices)]
        self._shared = np.isin(shard.slots[shard.rank], replicated(shard.slots))

    def __call__(self, gradient: Shaped[Tensor, " C *expert"]) -> Shaped[Tensor, " C *expert"]:
        """The gradient (C, ...) with replicated slots summed over their holders. All ranks call it."""
        counts = [len(slots) for slots in self._sent]
        sent = torch.as_tensor(np.concatenate(self._sent), device=gradient.device)
        arrived = Exchange(counts, counts, self.shard.group)(gradient[sent]).split(counts)
        # a device shares slots with another in the order of the experts, so what arrives is in the order of what left
        shared = torch.from_numpy(self._shared).to(gradient.device)
        total = torch.where(shared.view(-1, *[1] * (gradient.ndim - 1)), 0, gradient)
        for slots, part in zip(self._sent, arrived, strict=True):
            total = total.index_add(0, torch.as_tensor(slots, device=gradient.device), part)
        return total


def shared_slots(slots: Integer[np.ndarray, "G C"], device: int, other: int) -> Int[np.ndarray, " shared"]:
    """Slots of a device whose replicated experts the other device holds too, in the order of the experts.

    With itself a device shares all its replicated slots.
    """
    common = np.intersect1d(np.intersect1d(slots[device], slots[other]), replicated(slots))
    return np.array([int(np.flatnonzero(slots[device] == expert)[0]) for expert in common], np.int64)


def replicated(slots: Integer[np.ndarray, "G C"]) -> Integer[np.ndarray, " experts"]:
    """Experts that more than one slot holds."""
    experts, counts = np.unique(slots[slots >= 0], return_counts=True)
    return experts[counts > 1]
