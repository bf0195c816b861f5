"""Device-limited routing (DeepSeek-AI, 2024, arXiv 2405.04434, DeepSeek-V2): choose the M devices of the highest
affinity, then the K best experts there. With nodes for devices, and a node's affinity the sum of its best K / M scores:
node-limited routing (DeepSeek-AI, 2024, arXiv 2412.19437, DeepSeek-V3).

The score is the gate's softmax as in V2; V3's sigmoid and bias per expert are left out, to vary one thing at a time.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routers.devices import DeviceRouter, DeviceTable, device_affinity


class DeviceLimited(DeviceRouter):
    """The K best-scored experts on the M devices of the highest affinity.

    With M = 1 and one expert's affinity that is the device of the top-1 expert. M = all devices is top-k.

    Args:
        max_devices: M devices (or nodes) a token may reach.
        affinity_experts: best scores on a device that are summed to its affinity; None: K / M as V3, at least 1.

    Raises:
        ValueError: M devices may hold fewer than K experts, there are fewer than M, or no score is to be summed.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        max_devices: int = 2,
        affinity_experts: int | None = 1,
        **gate: Any,
    ) -> None:
        super().__init__(dim, num_experts, layer, **gate)
        self.require_room(max_devices)
        if affinity_experts is not None and affinity_experts < 1:
            raise ValueError(f"affinity_experts must be at least 1, or null for top_k / M, got {affinity_experts}")
        self.max_devices = max_devices
        self.affinity_experts = affinity_experts or max(1, self.top_k // max_devices)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        affinity_TG = device_affinity(self.by_device(scores, fill=0.0), self.affinity_experts)
        nearest = affinity_TG.topk(self.max_devices, dim=-1).indices
        allowed = torch.zeros_like(affinity_TG, dtype=torch.bool).scatter_(1, nearest, True)
        return self.best_within(scores, allowed)


class NodeLimited(DeviceLimited):
    """The K best-scored experts on the M nodes with the largest sum of their K / M best scores.

    Args:
        node_of_expert: (L, E) node that holds each expert; None: contiguous blocks of `num_nodes`.
        max_nodes: M nodes a token may reach.

    Raises:
        ValueError: as DeviceLimited, of nodes.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        layer: int,
        *,
        node_of_expert: DeviceTable | None = None,
        num_nodes: int = 2,
        max_nodes: int = 1,
        **gate: Any,
    ) -> None:
        nodes: dict[str, Any] = {"device_of_expert": node_of_expert, "num_devices": num_nodes, "max_devices": max_nodes}
        super().__init__(dim, num_experts, layer, affinity_experts=None, **nodes, **gate)
