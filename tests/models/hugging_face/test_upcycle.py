"""A dense model split into experts computes what it did, as long as all experts are active."""

from functools import partial

import numpy as np
import pytest
import torch

from models.dispatch.local import LocalDispatcher
from models.experts import GroupedExperts
from models.gated_experts import GatedExperts
from models.hugging_face.block import moe_blocks
from models.hugging_face.split import clustered_split, random_split, shared_split
from models.hugging_face.upcycle import importance, observe_neurons, upcycle
from routers.topk import TopK

transformers = pytest.importorskip("transformers")
DIM, NEURONS, EXPERTS = 32, 64, 4


def tiny_llama(seed: int = 0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=DIM,
        intermediate_size=NEURONS,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=101,
    )
    return transformers.LlamaForCausalLM(config).eval()


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(seed))


class Equal(TopK):
    """All weights one, as a sum of all experts needs them."""

    def weigh(self, scores, chosen):
        return torch.ones_like(scores.gather(1, chosen))


def split(model, splits, router=Equal, top_k=EXPERTS, experts=GatedExperts) -> None:
    upcycle(model, [1, 2], splits, router=partial(router, top_k=top_k), experts=experts, dispatcher=LocalDispatcher())


def splits_of(model, kind: str):
    rng = np.random.default_rng(0)
    if kind == "random":
        return [random_split(NEURONS, EXPERTS, rng) for _ in range(2)]
    if kind == "shared":
        found = importance(model, [1, 2], [tokens(1)])
        return [shared_split(found[layer].numpy(), 32, EXPERTS, rng) for layer in (1, 2)]
    seen = {}
    observe_neurons(model, [1, 2], [tokens(1)], lambda layer, activation: seen.update({layer: activation.numpy()}))
    return [clustered_split(seen[layer], EXPERTS, rng) for layer in (1, 2)]


@pytest.mark.parametrize("kind", ["random", "shared", "clustered"])
def test_all_experts_active_is_the_dense_model(kind):
    model = tiny_llama()
    with torch.no_grad():
        dense = model(tokens()).logits
        split(model, splits_of(model, kind))
        torch.testing.assert_close(model(tokens()).logits, dense, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["random", "shared", "clustered"])
def test_every_neuron_is_in_one_place(kind):
    for one in splits_of(tiny_llama(), kind):
        assert sorted([*one.shared, *one.experts.flatten()]) == list(range(NEURONS))


def test_fewer_experts_differ_and_tell_their_routing():
    model = tiny_llama()
    dense = model(tokens()).logits
    split(model, splits_of(model, "random"), router=TopK, top_k=2)
    assert not torch.allclose(model(tokens()).logits, dense, atol=1e-4)
    assert [int(block.told.load.sum()) for block in moe_blocks(model)] == [2 * 18, 2 * 18]


def test_shared_neurons_are_the_important_ones():
    one = shared_split(np.array([0.1, 5.0, 0.2, 4.0, 0.3, 0.4]), 2, 2, np.random.default_rng(0))
    assert set(one.shared) == {1, 3}
    assert one.experts.shape == (2, 2)


def test_neurons_that_fire_together_stay_together():
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(40, 3))
    owner = rng.permutation(np.repeat(np.arange(3), 5))
    one = clustered_split(patterns[:, owner] + 0.01 * rng.normal(size=(40, 15)), 3, np.random.default_rng(1))
    assert all(len(set(owner[expert])) == 1 for expert in one.experts)


def test_importance_is_of_the_layer_asked_for():
    found = importance(tiny_llama(), [2], [tokens(1), tokens(2)])
    assert list(found) == [2]
    assert (found[2] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 5}, "64 neurons cannot be dealt evenly to 5 experts"),
        ({"num_shared": 64}, "64 shared neurons of 64"),
    ],
)
def test_impossible_splits_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        shared_split(np.ones(64), **{"num_shared": 0, "num_experts": 4, **change}, rng=np.random.default_rng(0))


def test_what_cannot_be_upcycled_is_refused():
    model = tiny_llama()
    halves = splits_of(model, "random")
    with pytest.raises(ValueError, match=r"experts=gated, got GroupedExperts"):
        split(model, halves, experts=GroupedExperts)
    with pytest.raises(ValueError, match=r"layers \[3\] to be split, the model has 0 to 2"):
        upcycle(
            model, [3], halves[:1], router=partial(TopK, top_k=2), experts=GatedExperts, dispatcher=LocalDispatcher()
        )
    split(model, halves)
    with pytest.raises(ValueError, match="MoEBlock is no gated MLP"):
        split(model, halves)
    with pytest.raises(ValueError, match=r"Linear has no decoder layers in model\.layers"):
        upcycle(torch.nn.Linear(2, 2), [0], halves[:1], router=TopK, experts=GatedExperts, dispatcher=LocalDispatcher())


def test_scale_multiplies_the_routed_experts_alone():
    outputs = {}
    for scale in (1.0, 4.0):
        model = tiny_llama()
        found = importance(model, [2], [tokens(1)])[2].numpy()
        halves = [shared_split(found, 32, EXPERTS, np.random.default_rng(0))]
        torch.manual_seed(1)
        upcycle(
            model,
            [2],
            halves,
            router=partial(TopK, top_k=2),
            experts=GatedExperts,
            dispatcher=LocalDispatcher(),
            scale=scale,
        )
        (block,) = moe_blocks(model)
        x = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(0))
        outputs[scale] = block(x) - block.layer.shared(x[0])
    torch.testing.assert_close(outputs[4.0], 4 * outputs[1.0])
