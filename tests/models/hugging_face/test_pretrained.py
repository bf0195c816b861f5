"""A dense model from disk, upcycled: only routers and experts are trained, whatever stands below is computed once."""

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer

from models.dispatch.local import LocalDispatcher
from models.gated_experts import GatedExperts
from models.hugging_face.pretrained import upcycled
from routers.topk import TopK

transformers = pytest.importorskip("transformers")
TOKENIZER = "data/tokenizer/bpe_2k.json"


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A tiny Llama beside the shipped tokenizer of 2k."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=512,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer.from_file(TOKENIZER).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def build(dense, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return partial(
        upcycled,
        path=dense,
        text="data/text",
        cache=cache,
        sequence_length=16,
        vocab_size=2048,
        last_layers=2,
        num_experts=4,
        shared_neurons=32,
        scale=2.0,
        split_seed=0,
        router=partial(TopK, top_k=2),
        experts=GatedExperts,
        dispatcher=LocalDispatcher(),
    )


def test_routers_and_experts_alone_are_trained(build):
    decoder = build()
    trained = {name.split("layers.")[1] for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    parts = ["experts.w1", "experts.w2", "router.gate.weight", "shared.down", "shared.gate_up"]
    assert sorted(trained) == [f"{layer}.mlp.layer.{part}" for layer in (0, 1) for part in parts]


def test_a_state_dict_holds_what_is_trained_and_restores_it(build):
    first, second = torch.nn.Sequential(build()), torch.nn.Sequential(build(split_seed=1))
    trained = {name for name, parameter in first.named_parameters() if parameter.requires_grad}
    assert set(first.state_dict()) == trained
    second.load_state_dict(first.state_dict())
    # which neurons are shared does not depend on the split's seed
    torch.testing.assert_close(second(torch.arange(16)[None]).logits, first(torch.arange(16)[None]).logits)
    with pytest.raises(RuntimeError, match=r"Missing key.*gate\.weight"):
        second.load_state_dict(
            {name: one for name, one in first.state_dict().items() if "1.mlp.layer.router" not in name}
        )


@pytest.mark.parametrize("shared", [0, 32])
def test_neurons_are_shared_or_dealt(build, shared):
    decoder = build(shared_neurons=shared)
    assert decoder.shape["expert_dim"] == (64 - shared) // 4
    assert decoder(torch.arange(16)[None]).logits.shape == (1, 16, 2048)


def test_a_seed_gives_one_model(build):
    states = [build(split_seed=seed).state_dict() for seed in (0, 0, 1)]
    name = "model.model.layers.1.mlp.layer.experts.w1"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 99}, "has 2048 tokens, model.vocab_size is 99"),
        ({"last_layers": 3}, "last_layers = 3: 1 to 2 of 3 layers can be upcycled"),
        ({"num_experts": 5}, "32 neurons cannot be dealt evenly to 5 experts"),
    ],
)
def test_impossible_models_are_refused(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_missing_weights_are_told(build, tmp_path):
    with pytest.raises(FileNotFoundError, match="run `make pretrained`"):
        build(path=tmp_path / "none")
