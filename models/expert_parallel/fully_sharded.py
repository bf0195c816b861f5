"""`FullyShardedExpertParallelStrategy`: expert parallelism whose dense weights are sharded too, by torch's FSDP2.

For models whose dense weights, gradients and optimiser states do not fit on every device. Experts live where the
Placement says, through the same dispatchers, and checkpoints are the same plain ones; only what is not an expert
becomes DTensors over all ranks (`torch.distributed.fsdp.fully_shard`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from models.dispatch import Dispatcher, ExpertShard
from models.expert_parallel.strategy import ExpertParallelStrategy, Planner
from models.transformer import Block
from placement.topology import Placement, Topology


class FullyShardedExpertParallelStrategy(ExpertParallelStrategy):
    """As ExpertParallelStrategy, with dense weights sharded over all ranks and gathered block by block when needed.

    Between steps a dense parameter is a DTensor, so optimisers must not mix it with experts in one operation: torch's
    own do not, unless they are told `foreach=True` or `fused=True`. The module's children are called by `forward`.

    Args:
        topology, placement, dispatcher, timeout_seconds, spare_slots: as of ExpertParallelStrategy.
        unit: modules of this type are gathered as a whole, one after the other.
        process_group_backend: None = what suits the device.
        fsdp: further arguments of `fully_shard`, such as `mp_policy` and `reshard_after_forward`.

    Raises:
        ValueError: a parameter of the LightningModule itself; else as ExpertParallelStrategy.
    """

    def __init__(
        self,
        topology: Topology,
        placement: Placement | Planner,
        dispatcher: Callable[[ExpertShard], Dispatcher],
        timeout_seconds: float = 300.0,
        spare_slots: int = 0,
        unit: type[nn.Module] = Block,
        process_group_backend: str | None = None,
        fsdp: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            topology, placement, dispatcher, timeout_seconds, spare_slots, process_group_backend=process_group_backend
        )
        self.unit, self.fsdp = unit, dict(fsdp or {})

    def model_to_device(self) -> None:
        """Unit by unit, each sharded before the next comes: the whole model never is on one device."""
        assert self.lightning_module is not None
        modules = list(self.lightning_module.modules())
        if not any(isinstance(module, FSDPModule) for module in modules):
            assert dist.group.WORLD is not None
            mesh = DeviceMesh.from_group(dist.group.WORLD, self.root_device.type)
            for module in [*(m for m in modules if isinstance(m, self.unit)), *self.lightning_module.children()]:
                self._fully_shard(module, mesh)
            self._refuse_unsharded()
            # validating alone, Lightning would copy rank 0's parts to the others
            names = [name for name, _ in self._named_parameters()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.lightning_module, names)
        super().model_to_device()

    def _fully_shard(self, module: nn.Module, mesh: DeviceMesh) -> None:
        experts = {parameter for name, parameter in self._named_parameters() if name in self._shards}
        module.to(self.root_device)
        for tensor in [*module.parameters(), *module.buffers()]:
            # ranks that were not seeded alike would hold parts of different models
            if tensor not in experts and not isinstance(tensor, DTensor):
                dist.broadcast(tensor.detach(), 0)
        fully_shard(module, mesh=mesh, ignored_params=experts, **self.fsdp)

    def _refuse_unsharded(self) -> None:
        for name, parameter in self._named_parameters():
            if name not in self._shards and not isinstance(parameter, DTensor):
                raise ValueError(f"{name} belongs to the LightningModule itself, put it into a child that is sharded")

    def configure_ddp(self) -> None:
        """Nothing: FSDP2 averages the gradients of dense weights."""

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            # after a forward pass without a backward one, such as validation, some are still gathered
            if isinstance(module, FSDPModule):
                module.reshard()
        return super()._named_parameters()

    def _norm_of_dense(self, parameters: list[nn.Parameter]) -> Tensor:
        norm = super()._norm_of_dense(parameters)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _whole(self, name: str, mine: Tensor) -> Tensor:
        if not isinstance(mine, DTensor):
            return super()._whole(name, mine)
        # after a run Lightning has moved the model to the CPU, which NCCL does not send from
        moved = mine.to(self.root_device)
        assert isinstance(moved, DTensor)
        whole = moved.full_tensor()
        return whole.cpu() if self.is_global_zero else mine

    def _mine(self, name: str, whole: Tensor) -> Tensor:
        like = dict(self._named_parameters()).get(name)
        if not isinstance(like, DTensor):
            return super()._mine(name, whole)
        # every rank has read the checkpoint: nothing is sent
        return distribute_tensor(whole.to(self.root_device), like.device_mesh, like.placements, src_data_rank=None)
