"""An expert that sees every token, computed while rows travel."""

import pytest
import torch
from torch import nn

from models.dispatch import LocalDispatcher
from models.experts import LoopExperts
from models.moe import MoELayer
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


def test_a_transformer_has_one_in_every_moe_layer(make_transformer):
    transformer = make_transformer(shared_dim=12)
    widths = [block.mlp.shared.up.out_features for block in transformer.blocks]
    assert widths == [12, 12]
    transformer(torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    assert all(block.mlp.shared.up.weight.grad.abs().sum() > 0 for block in transformer.blocks)
