"""The price of a device for routers that weigh devices against probability mass (ours): fixed, mixed or steered."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from routers.step_sum import StepSum, sum_over_ranks


class DeviceCost(nn.Module):
    """A fixed cost.

    Args:
        cost: price of a device, in shares of a token's unrestricted top-K mass.

    Raises:
        ValueError: a negative cost.
    """

    value: Float[Tensor, ""]

    def __init__(self, cost: float, *, persistent: bool = False) -> None:
        super().__init__()
        if cost < 0:
            raise ValueError(f"cost must not be negative, got {cost}")
        self.register_buffer("value", torch.tensor(cost), persistent=persistent)

    def forward(self) -> Float[Tensor, ""]:
        """The cost of the present step, or of an evaluation."""
        return self.value.float()

    def observe(self, num_devices: Int[Tensor, " T"]) -> None:
        """Take note of the devices that each token of a training batch reached."""

    def finish_step(self) -> None:
        """Set the cost of the next step."""


class MixedCost(DeviceCost):
    """In training uniform in [0, most], drawn anew each step, alike in all layers; in evaluation `cost`.

    One model then serves every cost. The draws come from an explicit generator, whose state is in every checkpoint.
    """

    drawn: Float[Tensor, ""]

    def __init__(self, cost: float, *, most: float, seed: int) -> None:
        super().__init__(cost)
        self.most = most
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("drawn", torch.zeros(()))
        self.finish_step()

    def forward(self) -> Float[Tensor, ""]:
        return self.drawn.float() if self.training else super().forward()

    def finish_step(self) -> None:
        self.drawn.fill_(self.most * torch.rand((), generator=self.generator).item())

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class SteeredCost(DeviceCost):
    """A cost that a budget sets: after each step cost += gain * (mean devices per token - target), at least 0.

    The mean is that of all ranks. The cost is part of every checkpoint and used in evaluation, too.
    """

    def __init__(self, cost: float, *, target: float, gain: float) -> None:
        super().__init__(cost, persistent=True)
        if target < 1 or gain <= 0:
            raise ValueError(f"target_devices must be at least 1 and gain positive, got {target} and {gain}")
        self.target, self.gain = target, gain
        # devices reached, and tokens
        self.seen = StepSum()

    def observe(self, num_devices: Int[Tensor, " T"]) -> None:
        self.seen.add(torch.stack([num_devices.sum(), torch.ones_like(num_devices).sum()]))

    def finish_step(self) -> None:
        seen = self.seen.take()
        if seen is not None:
            devices, tokens = sum_over_ranks(seen)
            excess = torch.where(tokens > 0, devices / tokens.clamp(min=1) - self.target, 0.0)
            self.value.add_(self.gain * excess).clamp_(min=0)


def device_cost(cost: float, mixed_cost: float, target_devices: float | None, gain: float, seed: int) -> DeviceCost:
    """The cost that a router's keys ask for.

    Raises:
        ValueError: a cost both mixed and steered, or a value out of range.
    """
    if mixed_cost < 0:
        raise ValueError(f"mixed_cost must not be negative, got {mixed_cost}")
    if mixed_cost and target_devices is not None:
        raise ValueError(f"a cost is mixed or steered, got mixed_cost={mixed_cost}, target_devices={target_devices}")
    if target_devices is not None:
        return SteeredCost(cost, target=target_devices, gain=gain)
    return MixedCost(cost, most=mixed_cost, seed=seed) if mixed_cost else DeviceCost(cost)
