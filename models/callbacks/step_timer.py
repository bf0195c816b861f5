"""Where a training step's time goes: router, dispatch, experts, combine and the rest, forward and backward. Ours.

Moments are noted at which one part hands over to the next. In the backward pass gradients note them: autograd runs the
operations of one thread in the reverse order of their making, so a mark between two parts is passed when one is done.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.dispatch import Dispatcher, nothing
from models.moe import MoELayer
from routers.base import Routing

ROUTER, DISPATCH, EXPERTS, COMBINE, REST = PARTS = ("router", "dispatch", "experts", "combine", "rest")


@runtime_checkable
class Clock(Protocol):
    """Notes moments without waiting for the device."""

    def now(self) -> Any:
        """This moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Between two moments; may wait."""
        ...


class HostClock:
    """The host's clock: of what runs on a CPU."""

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Events of a CUDA device's current stream."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class StepTimer:
    """Splits the time of training steps among `PARTS`.

    router: gate, choice and losses. dispatch and combine: from the rows given to the rows taken, waiting for other
    ranks included. experts: their products and, of replicas, the sum of gradients. rest: all else, also the reduction
    of dense gradients and the optimiser. Each with its backward pass.

    Args:
        clock: what tells the time, see `clock_of`.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._moments: list[tuple[str, Any]] = []

    @contextmanager
    def timing(self, module: nn.Module) -> Iterator[None]:
        """Split what runs inside the block; the module's MoE layers are slowed by nothing outside it."""
        layers = [layer for layer in module.modules() if isinstance(layer, MoELayer)]
        with ExitStack() as stack:
            for layer in layers:
                self._attach(layer, stack)
            self._moments = []
            self.enter(REST)
            yield
            self.enter(REST)

    def split(self) -> dict[str, float]:
        """Seconds of each part in the last timed block; their sum is the block's."""
        found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in zip(self._moments[:-1], self._moments[1:], strict=True):
            found[part] += self.clock.seconds(start, end)
        return found

    def enter(self, part: str) -> None:
        """From now on time is that of a part."""
        self._moments.append((part, self.clock.now()))

    def mark(self, x: Tensor, part: str) -> Tensor:
        """The same tensor; once its gradient is known, time is that of a part."""
        return _Mark.apply(x, self, part)  # pyright: ignore[reportReturnType]

    def _attach(self, layer: MoELayer, stack: ExitStack) -> None:
        router, experts = layer.router, layer.experts
        timed = {
            (router, "logits"): self._logits(router.logits),
            (router, "route"): self._forward(router.route),
            (router, "losses"): self._losses(router.losses),
            (experts, "forward"): self._experts(experts.forward),
            (layer, "dispatcher"): TimedDispatcher(layer.dispatcher, self),
        }
        for (owner, name), instead in timed.items():
            stack.enter_context(replaced(owner, name, instead))

    def _forward(self, call: Callable[..., Any], part: str = ROUTER) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self.enter(part)
            found = call(*arguments)
            self.enter(REST)
            return found

        return timed

    def _logits(self, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        timed = self._forward(call)
        return lambda x_TD: timed(self.mark(x_TD, REST))

    def _losses(self, call: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        timed = self._forward(call)
        return lambda *arguments: {name: self.mark(loss, ROUTER) for name, loss in timed(*arguments).items()}

    def _experts(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        timed = self._forward(call, EXPERTS)
        return lambda *arguments: self.mark(timed(*arguments), EXPERTS)


class TimedDispatcher:
    """A dispatcher whose time is noted; rows and plans are its own."""

    def __init__(self, dispatcher: Dispatcher, timer: StepTimer) -> None:
        self.dispatcher, self.timer = dispatcher, timer

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " C"], Any]:
        """As the dispatcher's own; what is computed meanwhile is none of its time."""

        def timed_meanwhile() -> None:
            self.timer.enter(REST)
            meanwhile()
            self.timer.enter(DISPATCH)

        self.timer.enter(DISPATCH)
        # a router without a gradient has no backward pass that would end
        after = ROUTER if routing.expert_weights.requires_grad else REST
        rows, tokens_per_slot, plan = self.dispatcher.dispatch(self.timer.mark(x_TD, after), routing, timed_meanwhile)
        self.timer.enter(REST)
        return self.timer.mark(rows, DISPATCH), tokens_per_slot, plan

    def combine(self, y_ND: Float[Tensor, "N D"], plan: Any) -> Float[Tensor, "T D"]:
        """As the dispatcher's own."""
        self.timer.enter(COMBINE)
        out_TD = self.dispatcher.combine(y_ND, plan)
        self.timer.enter(REST)
        return self.timer.mark(out_TD, COMBINE)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, timer: StepTimer, part: str) -> Tensor:
        ctx.timer, ctx.part = timer, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.timer.enter(ctx.part)
        return gradient, None, None


def clock_of(device: torch.device) -> Clock:
    """What tells the time of a device's work."""
    return CudaClock() if device.type == "cuda" else HostClock()


@contextmanager
def replaced(owner: nn.Module, name: str, instead: Any) -> Iterator[None]:
    """An object's attribute is another one inside the block, and what it was afterwards."""
    own = vars(owner).get(name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        delattr(owner, name)
        # a method is its class's
        if own is not None:
            setattr(owner, name, own)
