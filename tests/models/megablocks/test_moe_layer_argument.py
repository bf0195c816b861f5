"""A transformer takes another make of MoE layer."""

import torch
from torch import nn

from models.moe import MoELayer, MoEOutput


class Wrapped(nn.Module):
    """Another make: keeps how it was called, and adds nothing to its tokens."""

    def __init__(self, router, dim, hidden_dim, **options):
        super().__init__()
        self.router, self.arguments = router, (dim, hidden_dim, options)

    def forward(self, x_TD, token_ids, num_sequences):
        routing = self.router(x_TD, token_ids)
        return torch.zeros_like(x_TD), MoEOutput(routing, torch.zeros(4, dtype=torch.long), {}, num_sequences)


def test_it_stands_where_our_layer_would(make_transformer):
    decoder = make_transformer(moe_layer=Wrapped, num_layers=4, moe_every=2, init_std=0.1)
    made = [block.mlp for block in decoder.blocks if isinstance(block.mlp, Wrapped)]
    assert len(made) == decoder.num_moe_layers == 2
    assert made[0].arguments == (16, 16, {"capacity_factor": None, "init_std": 0.1, "output_std": 0.1 / 8**0.5})
    assert decoder.routers == [layer.router for layer in made]
    told = decoder(torch.zeros(3, 8, dtype=torch.long)).moe
    assert [layer.plan for layer in told] == [3, 3], "the number of sequences arrives"


def test_ours_is_made_where_none_is_given(make_transformer):
    decoder = make_transformer()
    assert all(isinstance(block.mlp, MoELayer) for block in decoder.blocks)
    assert decoder.routers == [block.mlp.router for block in decoder.blocks]
