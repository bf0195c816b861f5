"""All-to-all of rows with uneven splits, as an autograd operation that can overlap with computation."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


class Exchange:
    """One exchange of rows: `start` sends, `wait` returns what arrived; what is computed in between overlaps.

    Backward goes the other way round: `wait`'s gradient is sent as soon as it is known, `start`'s waits for it.

    Args:
        send: rows for each device, in the order of the devices.
        receive: rows from each device.
        group: the devices; gloo and NCCL behave alike.
    """

    def __init__(self, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> None:
        self.send, self.receive, self.group = list(send), list(receive), group
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def start(self, rows: Shaped[Tensor, " S *row"]) -> Shaped[Tensor, " R *row"]:
        """Send rows (S, ...), sorted by destination; the result must go through `wait` before it is read."""
        return _Start.apply(rows, self)  # pyright: ignore[reportReturnType]

    def wait(self, rows: Shaped[Tensor, " R *row"]) -> Shaped[Tensor, " R *row"]:
        """What `start` returned, once it has arrived: rows (R, ...), sorted by source."""
        return _Wait.apply(rows, self)  # pyright: ignore[reportReturnType]

    def __call__(self, rows: Shaped[Tensor, " S *row"]) -> Shaped[Tensor, " R *row"]:
        """`start` and `wait` at once."""
        return self.wait(self.start(rows))

    @property
    def back(self) -> "Exchange":
        """A new exchange that returns rows the way they came."""
        return Exchange(self.receive, self.send, self.group)

    def launch(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send without waiting; for the two autograd functions below."""
        arriving = rows.new_empty(sum(receive), *rows.shape[1:])
        work = dist.all_to_all_single(arriving, rows.contiguous(), receive, send, group=self.group, async_op=True)
        assert work is not None, "this process belongs to the group"
        self._under_way = work, arriving
        return arriving

    def finish(self) -> Tensor:
        """Wait for what was launched and return it."""
        assert self._under_way is not None, "start comes before wait"
        (work, arriving), self._under_way = self._under_way, None
        work.wait()
        return arriving


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.launch(rows, exchange.send, exchange.receive)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # what `_Wait.backward` sent for; the gradient handed on by it is the one that left
        return ctx.exchange.finish(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.finish()
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        exchange = ctx.exchange
        exchange.launch(gradient, exchange.receive, exchange.send)
        return gradient, None


def exchange_counts(counts: Shaped[Tensor, " G *n"], group: dist.ProcessGroup) -> Shaped[Tensor, " G *n"]:
    """Row g of counts goes to device g; the result's row g came from device g."""
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts.contiguous(), group=group)
    return received
