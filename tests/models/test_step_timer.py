"""Where a step's time goes, told by a clock that only the parts under test move."""

import pytest
import torch
from torch import nn

from models.callbacks.step_timer import PARTS, CudaClock, HostClock, StepTimer, clock_of
from models.dispatch import LocalDispatcher
from models.moe import MoELayer

TOKENS = torch.arange(6)


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def after(self, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        """The same tensor, at the price of `forward` seconds now and `backward` when its gradient passes."""
        self.time += forward
        return Cost.apply(x, self, backward)


class Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock, seconds):
        ctx.clock, ctx.seconds = clock, seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.time += ctx.seconds
        return gradient, None, None


class SlowDispatcher(LocalDispatcher):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def dispatch(self, x_TD, routing, meanwhile):
        rows, counts, plan = super().dispatch(self.clock.after(x_TD, 10, 20), routing, meanwhile)
        return self.clock.after(rows, 100, 200), counts, plan

    def combine(self, y_ND, plan):
        return self.clock.after(super().combine(y_ND, plan), 1000, 2000)


class SlowModel(nn.Module):
    """Two layers whose every part takes a time of its own; the rest takes 0.5 forward and 0.25 backward a layer."""

    def __init__(self, make_layer, clock, **options):
        super().__init__()
        self.clock = clock
        self.layers = nn.ModuleList(self.slowed(make_layer(**options)) for _ in range(2))

    def slowed(self, layer: MoELayer) -> MoELayer:
        clock, logits, forward, losses = self.clock, layer.router.logits, layer.experts.forward, layer.router.losses
        layer.router.logits = lambda x_TD: clock.after(logits(x_TD), 1, 2)
        layer.router.losses = lambda *told: {key: clock.after(loss, 3, 5) for key, loss in losses(*told).items()}
        layer.experts.forward = lambda x_ND, counts: clock.after(forward(x_ND, counts), 10_000, 20_000)
        layer.dispatcher = SlowDispatcher(clock)
        return layer

    def forward(self, x_TD):
        losses = []
        for layer in self.layers:
            out_TD, told = layer(self.clock.after(x_TD, 0.5, 0.25), TOKENS)
            x_TD, losses = x_TD + out_TD, losses + list(told.losses.values())
        return x_TD.square().sum() + sum(losses)


@pytest.fixture
def x_TD():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_every_part_gets_its_forward_and_backward_time(make_layer, x_TD):
    clock = Hand()
    timer, model = StepTimer(clock), SlowModel(make_layer, clock, balance_weight=0.1)
    with timer.timing(model):
        model(x_TD).backward()
    layers = 2
    assert timer.split() == {
        "router": layers * (1 + 2 + 3 + 5),
        "dispatch": layers * (110 + 220),
        "combine": layers * 3000,
        "experts": layers * 30_000,
        "rest": layers * 0.75,
    }
    assert sum(timer.split().values()) == clock.time


def test_a_router_without_a_gradient_does_not_get_what_follows(make_layer, x_TD):
    clock = Hand()
    timer, model = StepTimer(clock), SlowModel(make_layer, clock)
    for layer in model.layers:
        route = layer.router.route
        layer.router.route = lambda *given, route=route: type(out := route(*given))(*(field.detach() for field in out))
    with timer.timing(model):
        model(x_TD).backward()
    assert timer.split()["router"] == 2 * 1
    assert timer.split()["rest"] == 2 * 0.75


def test_the_timed_step_is_the_same_step_and_leaves_no_trace(make_layer, x_TD):
    layer = make_layer(balance_weight=0.1)
    before = {name: dict(vars(part)) for name, part in layer.named_modules()}

    def step():
        layer.zero_grad()
        x_TD.grad = None
        out_TD, told = layer(x_TD, TOKENS)
        (out_TD.square().sum() + sum(told.losses.values())).backward()
        return [out_TD.detach(), x_TD.grad, *(parameter.grad for parameter in layer.parameters())]

    plain, timer = step(), StepTimer(HostClock())
    with timer.timing(layer):
        timed = step()
    assert all(torch.equal(a, b) for a, b in zip(plain, timed, strict=True))
    assert {name: dict(vars(part)) for name, part in layer.named_modules()} == before
    assert set(timer.split()) == set(PARTS)
    assert all(seconds > 0 for seconds in timer.split().values())


def test_an_exception_leaves_no_trace(make_layer):
    layer = make_layer()
    dispatcher = layer.dispatcher
    with pytest.raises(RuntimeError, match="stop"), StepTimer(HostClock()).timing(layer):
        raise RuntimeError("stop")
    assert layer.dispatcher is dispatcher
    assert "forward" not in vars(layer.experts)


def test_only_the_last_block_counts(make_layer, x_TD):
    clock = Hand()
    timer, model = StepTimer(clock), SlowModel(make_layer, clock)
    for steps in (3, 1):
        with timer.timing(model):
            for _ in range(steps):
                model(x_TD).backward()
    assert timer.split()["experts"] == 2 * 30_000


def test_clock_is_the_devices():
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    assert isinstance(clock_of(torch.device("cuda")), CudaClock)


@pytest.mark.gpu
def test_events_add_up_on_a_gpu(make_layer):
    layer = make_layer(balance_weight=0.1).cuda()
    timer, whole = StepTimer(CudaClock()), [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    x_TD = torch.randn(6, 8, device="cuda", requires_grad=True)
    with timer.timing(layer):
        whole[0].record()
        layer(x_TD, TOKENS.cuda())[0].sum().backward()
        whole[1].record()
    split = timer.split()
    assert all(split[part] > 0 for part in PARTS)
    assert sum(split.values()) * 1e3 >= whole[0].elapsed_time(whole[1])
