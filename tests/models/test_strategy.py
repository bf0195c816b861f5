"""What `ExpertParallelStrategy` refuses and remembers; one rank, so that no other process is needed."""

from functools import partial

import lightning as L
import pytest
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from sharded_cases import ValidatedData
from train_cases import module, strategy, trainer

from models.dispatch import PerDeviceDispatcher, PerExpertDispatcher
from models.expert_parallel.strategy import _described


def test_a_precision_that_scales_losses_rank_by_rank_is_refused():
    alone = strategy(1, "contiguous", "per_device")
    alone.precision_plugin = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(ValueError, match=r"precision 16-mixed scales losses rank by rank.* take bf16-mixed"):
        alone.setup(L.Trainer())


def test_a_dispatcher_is_described_alike_on_all_ranks():
    def two_of_one_source():
        return lambda shard: PerDeviceDispatcher(shard)

    first, second = two_of_one_source(), two_of_one_source()
    assert repr(first) != repr(second)
    assert _described(first) == _described(second)
    assert _described(PerDeviceDispatcher) != _described(PerExpertDispatcher)
    assert _described(partial(PerDeviceDispatcher, x=1)) != _described(partial(PerDeviceDispatcher, x=2))


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A trainer of one rank, this process."""
    for name in ("MASTER_PORT", "MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield trainer(tmp_path, 1, strategy(1, "contiguous", "per_device"), max_steps=2, num_sanity_val_steps=0)
    dist.destroy_process_group()


def test_a_second_module_gets_its_experts_placed_too(alone):
    first, second = module(), module(seed=3)
    alone.fit(first, ValidatedData(2))
    alone.validate(second, ValidatedData(2), verbose=False)
    for used in (first, second):
        assert {type(block.mlp.dispatcher) for block in used.decoder.blocks} == {PerDeviceDispatcher}
