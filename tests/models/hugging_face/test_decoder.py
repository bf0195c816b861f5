"""A Hugging Face model as moelab's decoder: the same numbers, whatever is frozen and kept."""

from functools import partial

import numpy as np
import pytest
import torch

from models.dispatch.local import LocalDispatcher
from models.gated_experts import GatedExperts
from models.hugging_face.decoder import HuggingFaceDecoder
from models.hugging_face.split import random_split
from models.hugging_face.upcycle import upcycle
from routers.topk import TopK

transformers = pytest.importorskip("transformers")
LENGTH = 12


def tiny_llama(layers=(2, 3)):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=101,
        max_position_embeddings=16,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    splits = [random_split(64, 4, np.random.default_rng(0)) for _ in layers]
    if layers:
        upcycle(
            model,
            layers,
            splits,
            router=partial(TopK, top_k=2),
            experts=GatedExperts,
            dispatcher=LocalDispatcher(),
        )
    return model


def tokens(seed: int = 0, rows: int = 3) -> torch.Tensor:
    return torch.randint(101, (rows, 9), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_logits_are_the_models_own(frozen):
    model = tiny_llama()
    expected = model(tokens()).logits
    found = HuggingFaceDecoder(model, LENGTH, frozen=frozen)(tokens())
    # a trunk's states are rounded to float16
    torch.testing.assert_close(found.logits, expected, atol=2e-3 if frozen else 1e-6, rtol=0)
    assert [int(told.load.sum()) for told in found.moe] == [2 * 27, 2 * 27]


def test_what_was_kept_equals_what_is_computed(tmp_path):
    decoder = HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2, cache=tmp_path)
    first = decoder(tokens()).logits
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    torch.testing.assert_close(decoder(tokens()).logits, first, atol=0, rtol=0)
    uncached = HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2)
    torch.testing.assert_close(uncached(tokens()).logits, first, atol=0, rtol=0)


def test_the_trunk_is_not_computed_again(tmp_path):
    HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2, cache=tmp_path)(tokens())
    again = HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2, cache=tmp_path)
    (trunk,) = again._trunk
    trunk.inner.register_forward_pre_hook(lambda *_: pytest.fail("computed again"))
    again(tokens())


def test_other_weights_and_tokens_are_kept_apart(tmp_path):
    model = tiny_llama()
    HuggingFaceDecoder(model, LENGTH, frozen=1, cache=tmp_path)(tokens())
    HuggingFaceDecoder(model, LENGTH, frozen=2, cache=tmp_path)(tokens())
    HuggingFaceDecoder(model, LENGTH, frozen=2, cache=tmp_path)(tokens(1))
    assert len(list(tmp_path.rglob("*.npy"))) == 9


def test_rows_with_several_continuations_equal_plain_ones(tmp_path):
    decoder = HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2, cache=tmp_path)
    ids = tokens(rows=1)
    other = torch.cat([ids[:, :6], tokens(5, rows=1)[:, :3]], dim=1)
    both = torch.cat([ids, other[:, 6:]], dim=1)
    position = torch.tensor([[*range(9), 6, 7, 8]])
    part = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
    attend = torch.ones(12, 12, dtype=torch.bool).tril() & ((part[None] == 0) | (part[None] == part[:, None]))
    found = decoder.logits(decoder.hidden(both, position, attend[None]))
    torch.testing.assert_close(found[:, :9], decoder(ids).logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, 9:], decoder(other).logits[:, 6:], atol=2e-3, rtol=0)


def test_frozen_layers_are_neither_saved_nor_trained():
    decoder = HuggingFaceDecoder(tiny_llama(), LENGTH, frozen=2)
    names = [name for name, _ in decoder.named_parameters()]
    assert {name.split(".")[3] for name in names if ".layers." in name} == {"0", "1"}
    decoder(tokens()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.routers[0].parameters())


def test_whole_model_is_left_as_it_was():
    model = tiny_llama()
    expected = model(tokens()).logits
    HuggingFaceDecoder(model, LENGTH, frozen=2)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4
    torch.testing.assert_close(model(tokens()).logits, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen": 3}, "frozen = 3: of 4 layers those below the first MoE layer"),
        ({"sequence_length": 17}, "sequences of 17 tokens, the model has 16 positions"),
    ],
)
def test_impossible_decoders_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceDecoder(tiny_llama(), **{"sequence_length": LENGTH, **change})


def test_models_without_experts_and_long_rows_are_refused():
    with pytest.raises(ValueError, match="has no MoE layer of ours"):
        HuggingFaceDecoder(tiny_llama(layers=()), LENGTH)
    with pytest.raises(ValueError, match="sequence of 9 tokens, the model takes at most 8"):
        HuggingFaceDecoder(tiny_llama(), 8)(tokens())
