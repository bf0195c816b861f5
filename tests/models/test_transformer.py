from functools import partial

import pytest
import torch

from models.experts import GroupedExperts
from models.moe import MoELayer
from routers.topk import TopK


def token_ids(length: int = 8, batch: int = 3) -> torch.Tensor:
    return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(0))


class TestForward:
    @pytest.mark.parametrize("length", [8, 5, 1])
    def test_shapes(self, make_transformer, length):
        logits, moe = make_transformer()(token_ids(length))
        assert logits.shape == (3, length, 32)
        assert len(moe) == 2
        assert all(layer.load.sum() == 3 * length * 2 for layer in moe)

    def test_is_causal(self, make_transformer):
        decoder, early = make_transformer(init_std=0.5), token_ids()
        late = early.clone()
        late[:, 5] = (late[:, 5] + 1) % 32
        before, after = decoder(early).logits, decoder(late).logits
        torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-4, atol=1e-4)
        assert ((before[:, 5:] - after[:, 5:]).abs().amax(-1) > 1e-2).all()

    def test_sequences_do_not_see_one_another(self, make_transformer):
        decoder = make_transformer(init_std=0.5)
        alone = [decoder(sequence[None]).logits for sequence in token_ids()]
        torch.testing.assert_close(decoder(token_ids()).logits, torch.cat(alone), rtol=1e-4, atol=1e-4)

    def test_backends_agree_on_one_seed(self, make_transformer):
        loop, grouped = make_transformer(), make_transformer(experts=GroupedExperts)
        torch.testing.assert_close(loop(token_ids()).logits, grouped(token_ids()).logits, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self, make_transformer):
        decoder = make_transformer()
        logits, moe = decoder(token_ids())
        (logits.square().sum() + sum(sum(layer.losses.values()) for layer in moe)).backward()
        assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


class TestStructure:
    @pytest.mark.parametrize(("moe_every", "with_experts"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (4, [3])])
    def test_moe_every_nth_block(self, make_transformer, moe_every, with_experts):
        decoder = make_transformer(num_layers=4, moe_every=moe_every)
        moe = {i: block.mlp for i, block in enumerate(decoder.blocks) if isinstance(block.mlp, MoELayer)}
        assert list(moe) == with_experts
        assert [layer.router.layer for layer in moe.values()] == list(range(len(with_experts)))
        assert decoder.num_moe_layers == len(decoder(token_ids()).moe) == len(with_experts)

    def test_embeddings_are_tied(self, make_transformer):
        decoder = make_transformer()
        unseen = 31
        assert unseen not in token_ids()[:, :1]
        decoder(token_ids()[:, :1]).logits[..., unseen].sum().backward()
        assert decoder.tokens.weight.grad[unseen].abs().sum() > 0
        assert not any("head" in name for name, _ in decoder.named_parameters())

    def test_parameter_count(self, make_transformer):
        V, S, D, HIDDEN, E = 32, 8, 16, 24, 4
        decoder = make_transformer(num_layers=2, moe_every=2, expert_dim=HIDDEN)
        attention, norms = 4 * D * D + 4 * D, 4 * D
        dense, experts, gate = 2 * D * HIDDEN + HIDDEN + D, E * 2 * D * HIDDEN, D * E
        expected = (V + S) * D + 2 * (attention + norms) + dense + experts + gate + 2 * D
        assert sum(parameter.numel() for parameter in decoder.parameters()) == expected

    def test_residual_outputs_start_smaller(self, make_transformer):
        decoder = make_transformer(dim=64, num_heads=4, expert_dim=64, num_layers=8, moe_every=2)
        dense, moe = decoder.blocks[0].mlp, decoder.blocks[1].mlp
        for inner in (decoder.tokens.weight, decoder.blocks[0].attention.qkv.weight, dense.up.weight, moe.experts.w1):
            assert inner.std().item() == pytest.approx(0.02, rel=0.1)
        for output in (decoder.blocks[0].attention.out.weight, dense.down.weight, moe.experts.w2):
            assert output.std().item() == pytest.approx(0.02 / 4, rel=0.1)

    def test_shape_tells_models_apart(self, make_transformer):
        changes = [
            {},
            {"num_heads": 4},
            {"expert_dim": 24},
            {"num_experts": 8},
            {"num_layers": 4},
            {"moe_every": 2},
            {"vocab_size": 64},
            {"sequence_length": 16},
        ]
        shapes = {tuple(make_transformer(**change).shape.items()) for change in changes}
        assert len(shapes) == len(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3, "moe_every": 2}, "num_layers = 3 .*moe_every = 2"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"moe_every": 0}, "moe_every = 0"),
        ({"dim": 18, "num_heads": 4}, "dim = 18 is not divisible by num_heads = 4"),
        ({"router": partial(TopK, top_k=5)}, "num_experts = 4, got 5"),
    ],
)
def test_bad_value_is_named(make_transformer, changes, message):
    with pytest.raises(ValueError, match=message):
        make_transformer(**changes)


def test_too_long_a_sequence_is_named(make_transformer):
    with pytest.raises(ValueError, match="sequence of 9 tokens, the model takes at most 8"):
        make_transformer()(token_ids(9))


class TestHidden:
    def test_of_plain_sequences_is_what_forward_reads(self, make_transformer):
        decoder, ids = make_transformer(init_std=0.5), token_ids()
        positions, attend = torch.arange(8).expand(3, 8), torch.ones(3, 8, 8, dtype=torch.bool).tril()
        logits = decoder.logits(decoder.hidden(ids, positions, attend))
        torch.testing.assert_close(logits, decoder(ids).logits, rtol=1e-4, atol=1e-4)

    def test_two_continuations_share_one_context(self, make_transformer):
        decoder, ids = make_transformer(init_std=0.5), token_ids(length=8, batch=1)
        # tokens 0-3 are the context, 4-5 and 6-7 its continuations
        part = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
        attend = torch.ones(8, 8, dtype=torch.bool).tril() & ((part == 0) | (part[:, None] == part))
        positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5]])
        found = decoder.logits(decoder.hidden(ids, positions, attend[None]))[0]
        for own in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7]):
            torch.testing.assert_close(found[own], decoder(ids[:, own]).logits[0], rtol=1e-4, atol=1e-4)

    def test_position_beyond_the_longest_sequence_is_named(self, make_transformer):
        attend = torch.ones(1, 1, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match="sequence of 9 tokens, the model takes at most 8"):
            make_transformer().hidden(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[8]]), attend)
