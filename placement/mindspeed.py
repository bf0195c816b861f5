"""MindSpeed's expert placement while training (Huawei, 2025, github.com/Ascend/MindSpeed, "expert placement").

Loads are averaged exponentially (weight 0.9 on the past). Every 50 iterations the experts are placed anew by LPT, with
equally many on each device, in those layers where that lowers the coefficient of variation of the averaged device loads
by 0.08 or more. From its documentation, docs/features/moe_expert_load_balance_placeemnt.md [sic], and its settings
`expert_placement_freq` and `fine_grained_expert_placement_thre`; our own implementation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from placement.balance import device_load, mean_load
from placement.lpt import lpt
from placement.movement import check_current
from placement.topology import Placement, Topology, widened
from traces.routing import ExpertSets


def mindspeed(
    load: Real[np.ndarray, "*J L E"],
    topology: Topology,
    *,
    slots_per_device: int,
    routing: Sequence[ExpertSets] | None = None,
    current: Placement | None = None,
    min_gain: float = 0.08,
) -> Placement:
    """LPT in the layers in which it gains enough over the current plan, which the other layers keep.

    Spare slots stay empty, since MindSpeed knows no replicas. Nor does it rename devices (`placement.movement.relabel`
    does), so a new plan moves most experts of its layer.

    Args:
        load: averaged loads, see `MindSpeed.average`; of several (J, L, E), their mean.
        min_gain: least fall of the coefficient of variation (sample standard deviation over mean) of device loads.

    Raises:
        ValueError: what `lpt` refuses; current of other layers, experts or devices, or of more slots a device.
    """
    load_LE = mean_load(load)
    even = -(-load_LE.shape[-1] // topology.num_devices)
    plan = lpt(load_LE, topology, slots_per_device=min(even, slots_per_device))
    if current is None:
        return Placement(widened(plan, slots_per_device))
    check_current(current, load_LE, topology)
    gain_L = variation(load_LE, current) - variation(load_LE, plan)
    slots = [widened(each, slots_per_device) for each in (current, plan)]
    return Placement(np.where((gain_L >= min_gain)[:, None, None], slots[1], slots[0]))


def variation(load: Real[np.ndarray, "L E"], placement: Placement) -> Float[np.ndarray, " L"]:
    """Coefficient of variation of device loads with the sample's standard deviation, as MindSpeed takes it.

    0 where there is no load or only one device.
    """
    load_LG = device_load(load, placement)
    if load_LG.shape[1] == 1:
        return np.zeros(len(load_LG))
    mean_L = load_LG.mean(1)
    return np.divide(load_LG.std(1, ddof=1), mean_L, out=np.zeros(len(load_LG)), where=mean_L > 0)


@dataclass(frozen=True)
class MindSpeed:
    """When to place anew, and where: MindSpeed's policy for a loop that re-plans while training.

    Attributes:
        decay: weight of the past in the average; 0 for the last step only.
        every: iterations between two decisions.
        min_gain: see `mindspeed`.

    Raises:
        ValueError: decay outside 0 <= decay < 1, every below 1, or min_gain not finite.
    """

    decay: float = 0.9
    every: int = 50
    min_gain: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be 0 or more and below 1, got {self.decay}")
        if self.every < 1 or not np.isfinite(self.min_gain):
            raise ValueError(f"every must be 1 or more and min_gain finite, got {self.every} and {self.min_gain}")

    def average(self, past: Real[np.ndarray, "S L E"]) -> Float[np.ndarray, "L E"]:
        """The loads averaged exponentially from 0 on; the scale is smaller at the start, which changes no plan."""
        weight_S = (1.0 - self.decay) * self.decay ** np.arange(len(past))[::-1]
        return np.tensordot(weight_S, past, axes=1)

    def replan(
        self, step: int, past: Real[np.ndarray, "S L E"], current: Placement, topology: Topology
    ) -> Placement | None:
        """The next placement, or None while the current one stays.

        Args:
            step: iterations done so far; a decision is due when `every` divides it.
            past: loads of these iterations or of the last of them.

        Raises:
            ValueError: what `mindspeed` refuses.
        """
        if step < 1 or step % self.every or not len(past):
            return None
        plan = mindspeed(
            self.average(past),
            topology,
            slots_per_device=current.slots_per_device,
            current=current,
            min_gain=self.min_gain,
        )
        return None if (plan.holds == current.holds).all() else plan
