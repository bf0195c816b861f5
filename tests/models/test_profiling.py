"""Routing given text: equal to what training would see, and without a trace in the model."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.profiling import route_text, routing_trace
from routers.random import Random
from routers.topk import TopK


class Every(TopK):
    """Gives every third token one expert only, and counts calls in a buffer that only training may change."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("calls", torch.zeros(()))

    def select(self, scores, token_ids=None):
        if self.training:
            self.calls += 1
        chosen = super().select(scores, token_ids)
        chosen[::3, 1:] = -1
        return chosen


@pytest.fixture
def make(make_module):
    """A built module whose weights are large enough to give tokens different experts."""

    def make(router=TopK) -> LanguageModel:
        module = make_module({"router": partial(router, top_k=2), "init_std": 0.5})
        module.configure_model()
        return module.train()

    return make


@pytest.fixture
def batches(stream) -> list[Tensor]:
    return [stream.batch(index)["tokens"][:, :-1] for index in range(3)]


def test_choices_are_those_of_the_model(make, batches):
    module = make()
    found = route_text(module, iter(batches))
    assert found.shape == (3, 2, 4 * 8, 2)
    for step, tokens in enumerate(batches):
        for layer, told in enumerate(module.eval()(tokens).moe):
            np.testing.assert_array_equal(found[step, layer], told.routing.expert_indices)
            loads = np.bincount(found[step, layer].ravel(), minlength=4)
            np.testing.assert_array_equal(loads, told.load)


def test_batches_do_not_depend_on_one_another(make, batches):
    module = make()
    together = route_text(module, batches)
    np.testing.assert_array_equal(together[::-1], route_text(module, batches[::-1]))


@pytest.mark.parametrize("router", [TopK, Every, Random])
def test_the_model_stays_as_it_was(make, batches, router):
    module = make(router)
    module.decoder.norm.eval()  # frozen
    before = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    first, second = route_text(module, batches), route_text(module, batches)
    np.testing.assert_array_equal(first, second)
    after = module.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert [name for name, part in module.named_modules() if not part.training] == ["transformer.norm"]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_absent_choices_stay_absent(make, batches):
    found = route_text(make(Every), batches)
    assert (found[:, :, ::3, 1] == -1).all()
    assert (np.delete(found, slice(None, None, 3), axis=2) >= 0).all()


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_sequences_start_on_devices_in_equal_runs(make, batches, source, num_devices):
    module = make()
    trace = routing_trace(module, iter(batches), source, num_devices)
    expected = [sequence * num_devices // 4 for sequence in range(4) for _ in range(8)]
    assert trace.source_device.tolist() == expected
    assert trace.step.tolist() == [0, 1, 2]
    assert (trace.num_experts, trace.source) == (4, source)
    np.testing.assert_array_equal(trace.expert_indices, route_text(module, batches))


@pytest.mark.parametrize("num_devices", [0, 3])
def test_devices_that_do_not_divide_a_batch_are_named(make, batches, source, num_devices):
    with pytest.raises(ValueError, match=f"4 sequences a batch cannot be dealt evenly to {num_devices} devices"):
        routing_trace(make(), batches, source, num_devices)


def test_no_batch_and_uneven_batches_are_named(make, batches, source):
    with pytest.raises(ValueError, match=r"one shape, got choices .* of no batch"):
        routing_trace(make(), [], source)
    with pytest.raises(ValueError, match=r"one shape, got .*\(2, 16, 2\), \(2, 32, 2\)"):
        route_text(make(), [batches[0], batches[1][:2]])
