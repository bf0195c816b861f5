"""Balance losses per micro-batch, sequence and global batch, and what is summed over ranks."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from routers.base import Router
from routers.loss_free import LossFree
from routers.losses import count_tokens, sequence_balance_loss
from routers.quantile import Quantile
from routers.relu import Relu
from routers.step_sum import StepSum, sum_over_ranks
from routers.topk import TopK
from routers.topk_global import TopKGlobal
from routers.topk_sequence import TopKSequence

D, E, T = 16, 8, 24


def draw_logits(seed: int) -> torch.Tensor:
    """Logits (T, E); seeds favour different experts."""
    normal = torch.randn(T, E, generator=torch.Generator().manual_seed(seed))
    return normal + 2 * torch.eye(E)[seed % E]


def balance(router: Router, logits: torch.Tensor, num_sequences: int = 1) -> torch.Tensor:
    return router.losses(logits, router.route(logits), num_sequences)["balance"]


def make(router: type[Router]) -> Router:
    return router(D, E, 0, top_k=2, balance_weight=0.5)


class TestSequence:
    def test_one_sequence_is_the_micro_batch(self):
        torch.testing.assert_close(balance(make(TopKSequence), draw_logits(0)), balance(make(TopK), draw_logits(0)))

    def test_sequences_are_balanced_one_by_one(self):
        logits = torch.cat([draw_logits(seed) for seed in range(3)])
        alone = [balance(make(TopK), draw_logits(seed)) for seed in range(3)]
        found = balance(make(TopKSequence), logits, 3)
        torch.testing.assert_close(found, torch.stack(alone).mean())
        assert found > balance(make(TopK), logits) + 0.01
        routing = make(TopKSequence).route(logits)
        torch.testing.assert_close(found, 0.5 * sequence_balance_loss(routing.scores, routing.expert_indices, 3))


class TestGlobal:
    def test_one_micro_batch_of_one_process_is_the_micro_batch(self):
        router = make(TopKGlobal)
        for seed in range(3):
            torch.testing.assert_close(balance(router, draw_logits(seed)), balance(make(TopK), draw_logits(seed)))
            router.finish_step()

    def test_shares_are_those_of_the_step_so_far(self):
        router, counts = make(TopKGlobal), torch.zeros(E)
        for seed in range(3):
            logits = draw_logits(seed)
            routing = router.route(logits)
            counts = counts + count_tokens(routing.expert_indices, E)
            expected = 0.5 * E * (counts / counts.sum() * routing.scores.mean(0)).sum()
            torch.testing.assert_close(router.losses(logits, routing)["balance"], expected)

    def test_observing_leaves_the_step_alone(self):
        router = make(TopKGlobal)
        balance(router, draw_logits(0))
        torch.testing.assert_close(balance(router.eval(), draw_logits(1)), balance(make(TopK), draw_logits(1)))
        observed = balance(router.train(), draw_logits(2))
        unobserved = make(TopKGlobal)
        balance(unobserved, draw_logits(0))
        torch.testing.assert_close(observed, balance(unobserved, draw_logits(2)))


class TestStepSum:
    def test_adds_until_it_is_taken(self):
        total = StepSum()
        assert total.take() is None
        total.add(torch.tensor([1.0, 2.0]))
        assert total.add(torch.tensor([3.0, 4.0], requires_grad=True)).tolist() == [4.0, 6.0]
        taken = total.take()
        assert taken is not None
        assert taken.tolist() == [4.0, 6.0]
        assert not taken.requires_grad
        assert total.take() is None

    def test_one_process_is_its_own_sum(self):
        part = torch.tensor([1, 2])
        assert sum_over_ranks(part) is part


def make_steered() -> dict[str, Router]:
    classes = {"loss_free": LossFree, "quantile": Quantile, "relu": Relu}
    return {name: router(D, E, 0, top_k=2) for name, router in classes.items()}


def steered_state(routers: dict[str, Router]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, router in routers.items() for key, value in router.named_buffers()}


def train_one_step(rank: int, num_ranks: int, folder: Path) -> None:
    """Two micro-batches and a finished step on one of several ranks; what it found goes into a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks)
    steered, globally = make_steered(), make(TopKGlobal)
    losses = []
    for micro_batch in range(2):
        logits = draw_logits(2 * micro_batch + rank)
        losses.append(balance(globally, logits).detach())
        for router in steered.values():
            router.route(logits)
    for router in steered.values():
        router.finish_step()
    torch.save({"losses": torch.stack(losses), **steered_state(steered)}, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(train_one_step, (2, folder), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


class TestRanks:
    def test_global_loss_averages_to_that_of_one_process(self, ranks):
        router = make(TopKGlobal)
        for micro_batch in range(2):
            logits = torch.cat([draw_logits(2 * micro_batch + rank) for rank in range(2)])
            mean = torch.stack([rank["losses"][micro_batch] for rank in ranks]).mean()
            torch.testing.assert_close(mean, balance(router, logits).detach())
        assert ranks[0]["losses"][0] != ranks[1]["losses"][0]

    def test_steering_is_that_of_one_process(self, ranks):
        routers = make_steered()
        for seed in range(4):
            for router in routers.values():
                router.route(draw_logits(seed))
        for router in routers.values():
            router.finish_step()
        for key, expected in steered_state(routers).items():
            for rank in ranks:
                torch.testing.assert_close(rank[key], expected)
        assert steered_state(routers)["loss_free.bias"].abs().sum() > 0
