"""Experts that move between devices while training goes on (ours).

Who sends which expert to whom follows from two placements alone, so no rank asks another: an expert that a device is to
hold comes from the nearest device that holds it, as `placement.movement.migration` counts.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from models.dispatch.exchange import Exchange
from models.dispatch.shard import ExpertShard
from placement.topology import Topology
from placement.volume import nearest_replica


class Migration:
    """How one layer's slots get from one shard to another, on one device.

    Args:
        old: the shard now.
        new: the shard to come, of the same devices and slots.
        topology: says which device is near.
    """

    def __init__(self, old: ExpertShard, new: ExpertShard, topology: Topology) -> None:
        self.new = new
        rank, holds = old.rank, _holds(old.slots, len(old.address) - 1)
        # [g, e]: the device that gives device g its expert e
        source_GE = nearest_replica(holds, topology)[:, :-1]
        send = [self._slots_for(other, old, new, source_GE[other] == rank) for other in range(old.num_devices)]
        receive = [_getting(new, rank, source_GE[rank] == other) for other in range(old.num_devices)]
        # what stays on the device is copied there
        self.kept_from, self.kept_to = send[rank], receive[rank]
        send[rank] = receive[rank] = np.empty(0, np.int64)
        self.send, self.receive = np.concatenate(send), np.concatenate(receive)
        self._counts = [len(slots) for slots in send], [len(slots) for slots in receive]

    @staticmethod
    def _slots_for(
        other: int, old: ExpertShard, new: ExpertShard, from_here: Shaped[np.ndarray, " E"]
    ) -> Int[np.ndarray, " n"]:
        experts = new.slots[other][_getting(new, other, from_here)]
        return np.array([int(np.flatnonzero(old.slots[old.rank] == expert)[0]) for expert in experts], np.int64)

    def __call__(self, mine: Shaped[Tensor, " C *expert"]) -> Shaped[Tensor, " C *expert"]:
        """This device's slots after the move; an empty slot holds zeros. All ranks call it."""
        moved = torch.zeros_like(mine)
        moved[torch.from_numpy(self.kept_to)] = mine[torch.from_numpy(self.kept_from)]
        arrived = Exchange(*self._counts, self.new.group)(mine[torch.from_numpy(self.send)])
        moved[torch.from_numpy(self.receive)] = arrived
        return moved


@torch.no_grad()
def move_parameter(parameter: nn.Parameter, optimizers: Iterable[Optimizer], migration: Migration) -> None:
    """Move a parameter's slots and what optimisers keep of them, in place."""
    for tensor in moving(parameter, optimizers):
        tensor.copy_(migration(tensor))
    # of the old place's slots, and about to be cleared
    parameter.grad = None


def moving(parameter: nn.Parameter, optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """A parameter of slots and what optimisers keep slot by slot.

    That is known by its shape alone, as in checkpoints: a scalar, such as a number of steps, is common to all slots.
    """
    states = [optimizer.state.get(parameter, {}).values() for optimizer in optimizers]
    return [parameter, *(one for state in states for one in state if isinstance(one, Tensor) and one.ndim)]


def _getting(new: ExpertShard, device: int, from_there: Shaped[np.ndarray, " E"]) -> Int[np.ndarray, " n"]:
    """Slots of a device to come whose experts one other device gives it, by `from_there` (E,)."""
    experts = new.slots[device]
    return np.flatnonzero((experts >= 0) & from_there[experts])


def _holds(slots: Int[np.ndarray, "G C"], num_experts: int) -> Shaped[np.ndarray, "G E"]:
    """Whether a device holds an expert."""
    return (slots[:, :, None] == np.arange(num_experts)).any(1)
