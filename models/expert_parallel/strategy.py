"""`ExpertParallelStrategy`: a DDPStrategy whose MoE layers' experts live where a Placement says.

It differs from data parallelism in six places, each of which silently trains another model if it is left out:

- experts are sliced on every rank, and DDP neither copies nor averages them;
- an expert's gradient holds all ranks' tokens, so it is divided by their number, as DDP does with the rest;
- the gradients of an expert's replicas are summed;
- gradients are clipped by the norm over all ranks' parameters, or dense weights would drift apart;
- checkpoints hold all experts in order, so they load at any world size and without this strategy;
- optimiser states are gathered and sliced like the weights they belong to.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from models.dispatch import Dispatcher, ExpertShard
from models.expert_parallel.peers import Peers
from models.expert_parallel.sharded_experts import ShardedExperts
from models.expert_parallel.sharding import gather, held, owned
from models.expert_parallel.watch import GRACE_SECONDS
from models.moe import MoELayer
from placement.topology import Placement, Topology
from placement.volume import CommVolume


@runtime_checkable
class Planner(Protocol):
    """A planner of `placement`, such as `placement.contiguous.contiguous`."""

    def __call__(self, load: np.ndarray, topology: Topology, *, slots_per_device: int) -> Placement: ...


class ExpertParallelStrategy(DDPStrategy):
    """Shards the experts of every `MoELayer` of a LightningModule; the rest is data-parallel. gloo and NCCL alike.

    Args:
        topology: nodes and devices of the run, one rank a device, node by node.
        placement: where experts live, or a planner that says so for even loads.
        dispatcher: makes a layer's dispatcher from its shard, such as `models.dispatch.PerDeviceDispatcher`.
        spare_slots: slots a device beyond those that the experts fill, for a planner's replicas or a later `migrate`.
        timeout_seconds: how long a rank waits for another before the run ends.
        ddp: further arguments of DDPStrategy.

    Raises:
        ValueError: ranks, topology, placement and model differ in devices, layers or experts, or ranks among each
            other in what they were told.
    """

    def __init__(
        self,
        topology: Topology,
        placement: Placement | Planner,
        dispatcher: Callable[[ExpertShard], Dispatcher],
        timeout_seconds: float = 300.0,
        spare_slots: int = 0,
        **ddp: Any,
    ) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_seconds), **ddp)
        self.topology, self.placement, self.dispatcher = topology, placement, dispatcher
        self.spare_slots = spare_slots
        self.timeout_seconds = timeout_seconds
        self._peers: Peers | None = None
        self._experts: ShardedExperts | None = None
        self._sharded: L.LightningModule | None = None
        self._exchanging: dist.ProcessGroup | None = None

    def setup_distributed(self) -> None:
        """As DDPStrategy, with a store that also knows who is alive."""
        self.set_world_ranks()
        self._process_group_backend = backend = self._get_process_group_backend()
        assert self.cluster_environment is not None
        told = {"number of devices": self.topology.num_devices, "backend": backend}
        self._peers = Peers(self.cluster_environment, told, self.timeout_seconds)
        if self.world_size != self.topology.num_devices:
            raise ValueError(f"{self.world_size} ranks for a topology of {self.topology.num_devices} devices")
        if backend == "nccl":
            # its watchdog ends the process without a word: the peers' watch, which names the rank, comes first
            self._timeout = timedelta(seconds=self.timeout_seconds + 2 * GRACE_SECONDS)
        _init_dist_connection(
            self.cluster_environment,
            backend,
            timeout=self._timeout,
            store=self._peers.store,
            device_id=self.root_device if self.root_device.type != "cpu" else None,
        )
        assert isinstance(dist.group.WORLD, dist.ProcessGroup)
        self._peers.watch.groups += [dist.group.WORLD, *filter(None, [self._exchanging])]

    def setup(self, trainer: L.Trainer) -> None:
        if getattr(self.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                f"precision {self.precision_plugin.precision} scales losses rank by rank, and ranks whose experts "
                "overflow would skip a step alone: take bf16-mixed, bf16-true or 32-true"
            )
        # the same module comes again to be validated
        if self._sharded is not self.lightning_module:
            self._shard_layers()
            self._sharded = self.lightning_module
        super().setup(trainer)
        self.precision_plugin.clip_grad_by_norm = self._clip_by_global_norm  # pyright: ignore[reportAttributeAccessIssue]

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        # all experts are built once before each rank keeps its own: not on an accelerator that they may not fit
        with self.precision_plugin.tensor_init_context():
            yield

    def _shard_layers(self) -> None:
        assert self.lightning_module is not None
        assert self._peers is not None
        layers = {name: m for name, m in self.lightning_module.named_modules() if isinstance(m, MoELayer)}
        if not layers:
            raise ValueError("expert parallelism needs a model with an MoELayer, this one has none")
        placement = self._placement_of(layers)
        self._peers.agree(
            {
                "placement": placement.slots.tolist(),
                "topology": repr(self.topology),
                "dispatcher": _described(self.dispatcher),
                "precision": self.precision_plugin.precision,
                "parameters": {n: (tuple(p.shape), p.dtype) for n, p in self.lightning_module.named_parameters()},
            }
        )
        group = self._exchange_group(self._peers)
        self._experts = ShardedExperts(layers, placement, self.topology, group, self.root_device, self.dispatcher)
        # DDP when fitting, and Lightning itself when only validating, would copy rank 0's to the others
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.lightning_module, list(self._shards))

    @property
    def experts(self) -> ShardedExperts:
        """This rank's experts.

        Raises:
            ValueError: there are none before a run is set up.
        """
        if self._experts is None:
            raise ValueError("experts live nowhere before a run is set up")
        return self._experts

    @property
    def _shards(self) -> Mapping[str, ExpertShard]:
        return self._experts.shards if self._experts else {}

    @property
    def bytes_per_expert(self) -> int:
        """What moves with one expert of one layer: its weights and what optimisers keep of them by now."""
        return self.experts.bytes_per_expert(self.optimizers)

    def migrate(self, placement: Placement) -> CommVolume:
        """Move experts to another placement between two steps, optimiser states with them. All ranks call it.

        Training goes on as if they had always lived there. Slots are overwritten, so there must be as many as before.

        Returns:
            Bytes that devices sent one another, batch axis (L,).

        Raises:
            ValueError: as `ShardedExperts.check`, or ranks were told different placements.
        """
        assert self._peers is not None
        self.experts.check(placement)
        self._peers.agree({"placement to move to": placement.slots.tolist()})
        return self.experts.migrate(placement, self.optimizers)

    def _exchange_group(self, peers: Peers) -> dist.ProcessGroup:
        """A group of its own: exchanges of rows never wait behind the reduction of gradients."""
        if self._exchanging is None:
            group = dist.new_group(timeout=self._timeout)
            assert isinstance(group, dist.ProcessGroup)
            self._exchanging = group
            peers.watch.groups.append(group)
        return self._exchanging

    def _placement_of(self, layers: Mapping[str, MoELayer]) -> Placement:
        sizes = {layer.router.num_experts for layer in layers.values()}
        if len(sizes) > 1:
            raise ValueError(f"expert parallelism needs equal numbers of experts in all layers, got {sorted(sizes)}")
        shape = (len(layers), sizes.pop())
        if isinstance(self.placement, Placement):
            if (self.placement.num_layers, self.placement.num_experts) != shape:
                placed = (self.placement.num_layers, self.placement.num_experts)
                raise ValueError(f"the model has (layers, experts) = {shape}, the placement {placed}")
            return self.placement
        slots = -(-shape[1] // self.topology.num_devices) + self.spare_slots
        return self.placement(np.ones(shape), self.topology, slots_per_device=slots)

    def _clip_by_global_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        """Clip by the norm of all gradients; each expert counts once, dense ones are equal on all ranks."""
        parameters = [p for p in self.precision_plugin.main_params(optimizer) if p.grad is not None]
        shard_of = {id(p): self._shards[name] for name, p in self._named_parameters() if name in self._shards}
        experts = [p for p in parameters if id(p) in shard_of]
        dense = [p for p in parameters if id(p) not in shard_of]
        square = torch.zeros((), device=self.root_device)
        for parameter in experts:
            mine = torch.from_numpy(owned(shard_of[id(parameter)])).to(self.root_device)
            assert parameter.grad is not None
            square = square + parameter.grad[mine].float().square().sum()
        dist.all_reduce(square)
        total = (square + self._norm_of_dense(dense).square()).sqrt()
        for of_one_kind in (experts, dense):
            torch.nn.utils.clip_grads_with_norm_(of_one_kind, clip_val, total)

    def _norm_of_dense(self, parameters: list[nn.Parameter]) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        assert self.lightning_module is not None
        return list(self.lightning_module.named_parameters())

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole model on rank 0, which writes it; other ranks keep their slots."""
        return {name: self._whole(name, value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._convert(optimizer, super().optimizer_state(optimizer), self._whole)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = {name: self._mine(name, value) for name, value in checkpoint["state_dict"].items()}
        super().load_model_state_dict({**checkpoint, "state_dict": state}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [
            self._convert(optimizer, state, self._mine)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _convert(
        self, optimizer: Optimizer, state: dict[str, Any], convert: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Any]:
        """A copy of an optimiser's state with every tensor shaped like its parameter converted; scalars stay."""
        name_of = {id(p): name for name, p in self._named_parameters()}
        names = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
        converted = {
            number: {
                key: convert(names[number], value) if isinstance(value, Tensor) and value.ndim else value
                for key, value in entries.items()
            }
            for number, entries in state["state"].items()
        }
        return {**state, "state": converted}

    def _whole(self, name: str, mine: Tensor) -> Tensor:
        """What a checkpoint holds of a parameter, or of what is shaped like it: on rank 0. All ranks call it."""
        if name not in self._shards:
            return mine
        whole = gather(mine, self._shards[name])
        # all experts may not fit on one accelerator
        return mine if whole is None else whole.cpu()

    def _mine(self, name: str, whole: Tensor) -> Tensor:
        """What this rank keeps of it."""
        return held(whole, self._shards[name]) if name in self._shards else whole

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        assert self._peers is not None
        self._peers.watch.step = self.lightning_module.global_step
        return super().training_step(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if self._peers is not None and isinstance(exception, Exception):
            self._peers.watch.explain(exception)

    def teardown(self) -> None:
        super().teardown()
        if self._peers is not None:
            self._peers.watch.leave()


def _described(made_by: Callable[..., Any]) -> str:
    """A class or function by its name, which is the same on every rank, and what it was given."""
    if isinstance(made_by, partial):
        return f"{_described(made_by.func)} of {made_by.args} and {made_by.keywords}"
    return getattr(made_by, "__qualname__", type(made_by).__qualname__)
