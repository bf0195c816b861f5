"""A model's experts on one device: cut down to its slots, and moved to other devices while training goes on."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from models.dispatch import Dispatcher, ExpertShard, make_shard
from models.expert_parallel.migration import Migration, move_parameter, moving
from models.expert_parallel.sharding import ReplicaSum, held, replicated
from models.moe import MoELayer
from placement.movement import migration
from placement.topology import Placement, Topology
from placement.volume import CommVolume


class ShardedExperts:
    """Replaces the experts of MoE layers by this device's slots of them. All ranks construct it.

    Args:
        layers: the MoE layers by name, in the placement's order.
        placement: where experts live first.
        topology: of the group's devices.
        group: that rows and experts travel through.
        device: on which slots are held.
        dispatcher: makes a layer's dispatcher from its shard.

    Attributes:
        placement: where experts live now.
        shards: by the name of a sharded parameter.
    """

    def __init__(
        self,
        layers: Mapping[str, MoELayer],
        placement: Placement,
        topology: Topology,
        group: dist.ProcessGroup,
        device: torch.device,
        dispatcher: Callable[[ExpertShard], Dispatcher],
    ) -> None:
        self.layers, self.topology, self.group, self.device = layers, topology, group, device
        self.dispatcher = dispatcher
        self.shards: dict[str, ExpertShard] = {}
        self._replicas: dict[str, ReplicaSum] = {}
        for (name, layer), shard in zip(layers.items(), self._make_shards(placement), strict=True):
            self._cut(name, layer, shard)
            self._use(name, shard)
        self.placement = placement

    def _make_shards(self, placement: Placement) -> list[ExpertShard]:
        layers = range(placement.num_layers)
        return [make_shard(placement, self.topology, layer, self.group, self.device) for layer in layers]

    def _cut(self, name: str, layer: MoELayer, shard: ExpertShard) -> None:
        def of_mean_loss(gradient: Tensor) -> Tensor:
            # looked up anew: experts may have moved since the hook was registered
            replicas = self._replicas.get(name)
            summed = replicas(gradient) if replicas else gradient
            return summed / shard.num_devices

        for key, parameter in list(layer.experts.named_parameters(recurse=False)):
            # ranks that were not seeded alike would hold parts of different models
            whole = parameter.detach().to(self.device)
            dist.broadcast(whole, 0)
            mine = nn.Parameter(held(whole, shard), requires_grad=parameter.requires_grad)
            if mine.requires_grad:
                # a hook sees each micro-batch's gradient before it is accumulated
                mine.register_hook(of_mean_loss)
            setattr(layer.experts, key, mine)

    def _use(self, name: str, shard: ExpertShard) -> None:
        """From now on a layer's experts live as its shard says."""
        layer = self.layers[name]
        self.shards |= {f"{name}.experts.{key}": shard for key, _ in layer.experts.named_parameters(recurse=False)}
        self._replicas.pop(name, None)
        if len(replicated(shard.slots)):
            self._replicas[name] = ReplicaSum(shard)
        layer.dispatcher = self.dispatcher(shard)

    def check(self, placement: Placement) -> None:
        """Refuse a placement that experts cannot move to.

        Raises:
            ValueError: another number of layers, devices, slots or experts, or a router that knows where experts live.
        """
        shapes = [(*one.slots.shape, one.num_experts) for one in (self.placement, placement)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"experts live in (layers, devices, slots, experts) = {shapes[0]}, not {shapes[1]}")
        if knowing := [name for name, layer in self.layers.items() if hasattr(layer.router, "device_of_expert")]:
            raise ValueError(f"the router of {knowing[0]} was told where experts live: they cannot move")

    def bytes_per_expert(self, optimizers: Sequence[Optimizer]) -> int:
        """What moves with one expert of one layer: its weights and what optimisers keep of them."""
        layer = next(iter(self.layers.values()))
        tensors = [
            one for parameter in layer.experts.parameters(recurse=False) for one in moving(parameter, optimizers)
        ]
        return sum(tensor[0].nbytes for tensor in tensors)

    def migrate(self, placement: Placement, optimizers: Sequence[Optimizer]) -> CommVolume:
        """Move experts to another placement, with what optimisers keep of them, in place. All ranks call it.

        Returns:
            Bytes that devices sent one another, batch axis (L,).

        Raises:
            ValueError: as `check`.
        """
        self.check(placement)
        volume = migration(self.placement, placement, self.topology, self.bytes_per_expert(optimizers))
        for (name, layer), shard in zip(self.layers.items(), self._make_shards(placement), strict=True):
            parameters = dict(layer.experts.named_parameters(recurse=False))
            old = self.shards[f"{name}.experts.{next(iter(parameters))}"]
            # most moves leave most layers as they are: those need no exchange
            if np.array_equal(old.slots, shard.slots):
                continue
            move = Migration(old, shard, self.topology)
            for parameter in parameters.values():
                move_parameter(parameter, optimizers, move)
            self._use(name, shard)
        self.placement = placement
        return volume
