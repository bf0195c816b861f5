"""Slots that swap their experts until no swap makes devices more even; replicas stay on different devices (ours).

A swap carries a load from one device to another. It lowers the sum of the squares of device loads exactly if it brings
the two closer together, and then it lowers the larger of the two as well. So where no swap lowers the sum of squares,
no swap lowers the maximum either, and the search never raises it: squares are what is descended, busy devices first.

Several loads at once (J) add up their squares. The worst device under any of them then needs a descent of its own.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

# of squared shares, a share of 1 being the mean load of a device: above what rounding leaves, so that searches end
SMALLEST_GAIN = 1e-10


class SlotSwaps:
    """The slots of one layer and the load of its devices under J loads; a replica has an equal part of its expert's.

    Args:
        slots: (G, C) expert of each slot or -1, none twice on a device.
        share: (J, E) load of each expert over the mean load of a device.
    """

    def __init__(self, slots: Int[np.ndarray, "G C"], share: Float[np.ndarray, "J E"]) -> None:
        num_devices, self._num_slots = slots.shape
        num_experts = share.shape[1]
        self._device_P = np.repeat(np.arange(num_devices), self._num_slots)
        self._expert_P = slots.reshape(-1).copy()
        replicas_E = np.bincount(self._expert_P[self._expert_P >= 0], minlength=num_experts)
        # the last column is what an empty slot (-1) finds
        self._weight_JP = np.pad(share / np.maximum(replicas_E, 1), ((0, 0), (0, 1)))[:, self._expert_P]
        self._holds_GE1 = np.zeros((num_devices, num_experts + 1), bool)
        self._holds_GE1[self._device_P, self._expert_P] = True
        self._holds_GE1[:, -1] = False
        self.load = self._weight_JP.reshape(len(share), num_devices, self._num_slots).sum(-1)

    @property
    def slots(self) -> Int[np.ndarray, "G C"]:
        """The experts of all slots as they are now."""
        return self._expert_P.reshape(-1, self._num_slots).copy()

    @property
    def worst(self) -> float:
        """Max over mean of the device loads, of the worst of the J loads."""
        return float(self.load.max())

    def descend(self) -> Iterator[None]:
        """Swap until no swap lowers the sum of squares: each device in turn its best one, the busiest first.

        Yields:
            None: after every swap.
        """
        swapped = True
        while swapped:
            swapped = False
            for device in np.argsort(-self.load.max(0), kind="stable"):
                slots_C = self._of(int(device))
                first, second, change = self._least(self._change_of_squares(slots_C), slots_C)
                if change < -SMALLEST_GAIN:
                    self._swap(first, second)
                    swapped = True
                    yield

    def descend_worst(self) -> None:
        """Swap until no swap of the worst device's slots leaves both devices below it under all J loads."""
        while True:
            slots_C = self._of(int(self.load.max(0).argmax()))
            first, second, worst = self._least(self._worst_of_pair(slots_C), slots_C)
            if worst > self.worst - SMALLEST_GAIN:
                return
            self._swap(first, second)

    def _of(self, device: int) -> Int[np.ndarray, " C"]:
        return np.arange(device * self._num_slots, (device + 1) * self._num_slots)

    def _least(self, value_CP: Float[np.ndarray, "C P"], slots_C: Int[np.ndarray, " C"]) -> tuple[int, int, float]:
        """The pair of slots with the least value among the swaps that are allowed, and that value."""
        value_CP[self._forbidden(slots_C)] = np.inf
        first, second = divmod(int(value_CP.argmin()), value_CP.shape[1])
        return int(slots_C[first]), second, float(value_CP[first, second])

    def _change_of_squares(self, slots_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, "C P"]:
        moved_JCP, gap_J1P = self._moved(slots_C), self._gap(slots_C)
        # half of (x - moved)^2 - x^2 + (y + moved)^2 - y^2
        return (moved_JCP * (gap_J1P + moved_JCP)).sum(0)

    def _worst_of_pair(self, slots_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, "C P"]:
        moved_JCP, own_J11 = self._moved(slots_C), self._own(slots_C)
        return np.maximum(own_J11 - moved_JCP, own_J11 + self._gap(slots_C) + moved_JCP).max(0)

    def _moved(self, slots_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, "J C P"]:
        """Load that each swap takes away from the device of its first slot."""
        return self._weight_JP[:, slots_C, None] - self._weight_JP[:, None]

    def _own(self, slots_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, "J 1 1"]:
        return self.load[:, self._device_P[slots_C[0]], None, None]

    def _gap(self, slots_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, "J 1 P"]:
        """By how much the device of each slot has more load than that of `slots_C`."""
        return self.load[:, None, self._device_P] - self._own(slots_C)

    def _forbidden(self, slots_C: Int[np.ndarray, " C"]) -> Bool[np.ndarray, "C P"]:
        """Swaps within a device, or that would give a device an expert that it holds."""
        device = self._device_P[slots_C[0]]
        has_first_CP = self._holds_GE1[:, self._expert_P[slots_C]].T[:, self._device_P]
        return has_first_CP | self._holds_GE1[device, self._expert_P] | (self._device_P == device)

    def _swap(self, first: int, second: int) -> None:
        pair, devices = [first, second], self._device_P[[first, second]]
        moved_J = self._weight_JP[:, first] - self._weight_JP[:, second]
        self.load[:, devices] += moved_J[:, None] * [-1.0, 1.0]
        self._holds_GE1[devices, self._expert_P[pair]] = False
        self._expert_P[pair] = self._expert_P[pair[::-1]]
        self._weight_JP[:, pair] = self._weight_JP[:, pair[::-1]]
        self._holds_GE1[devices, self._expert_P[pair]] = True
        self._holds_GE1[:, -1] = False


def even_out(slots: Int[np.ndarray, "G C"], share: Float[np.ndarray, "J E"]) -> Int[np.ndarray, "G C"]:
    """The slots after `SlotSwaps.descend`."""
    swaps = SlotSwaps(slots, share)
    for _ in swaps.descend():
        pass
    return swaps.slots
