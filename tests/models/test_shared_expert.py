"""An expert that sees every token, computed while rows travel."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from models.dispatch import LocalDispatcher, PerDeviceDispatcher, PerExpertDispatcher, PerNodeDispatcher, make_shard
from models.dispatch.exchange import Exchange
from models.experts import LoopExperts
from models.moe import MoELayer
from placement.topology import Placement, Topology
from routers.topk import TopK

TOKEN_IDS = torch.zeros(6, dtype=torch.long)


class Noting(LocalDispatcher):
    """Notes when rows leave and when they have come."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def dispatch(self, x_TD, routing, meanwhile):
        self.events.append("leave")
        meanwhile()
        self.events.append("come")
        return super().dispatch(x_TD, routing)


@pytest.fixture
def x():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def make(shared, dispatcher=None):
    torch.manual_seed(0)
    gate = TopK(8, 4, 0, top_k=2)
    return MoELayer(gate, LoopExperts(4, 8, 12, init_std=0.5), dispatcher or LocalDispatcher(), shared=shared)


def test_its_output_is_added(x):
    shared = nn.Linear(8, 8)
    without, told = make(None)(x, TOKEN_IDS)
    out, told_too = make(shared)(x, TOKEN_IDS)
    torch.testing.assert_close(out, without + shared(x))
    assert torch.equal(told.load, told_too.load)


def test_it_computes_between_leaving_and_coming(x):
    events = []
    shared = nn.Linear(8, 8)
    shared.register_forward_hook(lambda *_: events.append("compute"))
    make(shared, Noting(events))(x, TOKEN_IDS)
    assert events == ["leave", "compute", "come"]


@pytest.fixture
def shard(tmp_path):
    """Of the one rank of a process group: rows travel to itself, by the same calls."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    topology = Topology(1, 1, 1e9, 1e9, 1e-6, 1e-6)
    yield make_shard(Placement(np.arange(4).reshape(1, 1, 4)), topology, 0, dist.group.WORLD, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def events(monkeypatch):
    """Notes when an exchange of rows begins and when it is waited for."""
    events = []
    for name in ("launch", "finish"):
        told = getattr(Exchange, name)
        monkeypatch.setattr(
            Exchange, name, lambda *given, name=name, told=told: (events.append((name, given[0])), told(*given))[1]
        )
    return events


DISPATCHERS = [PerExpertDispatcher, PerDeviceDispatcher, PerNodeDispatcher]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_it_computes_while_rows_travel(x, shard, dispatcher, events):
    shared = nn.Linear(8, 8)
    shared.register_forward_hook(lambda *_: events.append(("compute", None)))
    make(shared, dispatcher(shard))(x, TOKEN_IDS)
    before = [what for what, _ in events[: events.index(("compute", None))]]
    assert set(before) == {"launch"}


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_its_gradient_is_computed_while_gradients_of_rows_travel(x, shard, dispatcher, events):
    shared = nn.Linear(8, 8)
    out = make(shared, dispatcher(shard))(x.requires_grad_(), TOKEN_IDS)[0]
    events.clear()
    shared.weight.register_hook(lambda _: events.append(("compute", None)))
    out.sum().backward()
    computed = events.index(("compute", None))
    under_way = {of for what, of in events[:computed] if what == "launch"}
    assert under_way & {of for what, of in events[computed:] if what == "finish"}


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_under_autocast_rows_travel_in_half_and_are_summed_in_single_precision(x, shard, dispatcher, monkeypatch):
    sent, launch = [], Exchange.launch
    monkeypatch.setattr(Exchange, "launch", lambda *given: (sent.append(given[1]), launch(*given))[1])
    with torch.autocast("cpu", torch.bfloat16):
        here = make(None)(x, TOKEN_IDS)[0]
        out = make(None, dispatcher(shard))(x, TOKEN_IDS)[0]
    assert {rows.dtype for rows in sent if rows.ndim == 2} == {torch.bfloat16}
    assert out.dtype == here.dtype == torch.float32
    # a device's sum of a token's outputs is rounded to bfloat16 on its way home, 2 ** -8 of it
    torch.testing.assert_close(out, here, rtol=2**-7, atol=2**-8)


def test_a_transformer_has_one_in_every_moe_layer(make_transformer):
    transformer = make_transformer(shared_dim=12)
    widths = [block.mlp.shared.up.out_features for block in transformer.blocks]
    assert widths == [12, 12]
    transformer(torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    assert all(block.mlp.shared.up.weight.grad.abs().sum() > 0 for block in transformer.blocks)
