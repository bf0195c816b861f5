"""The price of a device: fixed, drawn anew each step, or steered to a budget."""

import pytest
import torch

from routers.cost_aware import CostAware
from routers.device_cost import DeviceCost, MixedCost, SteeredCost
from routers.topk import TopK

D, E, T, K = 16, 16, 200, 4


def batch(step: int) -> torch.Tensor:
    return 2 * torch.randn(T, D, generator=torch.Generator().manual_seed(step))


def train(router: CostAware, steps: int) -> list[float]:
    """Mean devices per token of each step."""
    reached = []
    for step in range(steps):
        reached.append(router.devices_reached(router(batch(step)).expert_indices).float().mean().item())
        router.finish_step()
    return reached


def build(**keys) -> CostAware:
    torch.manual_seed(0)
    return CostAware(D, E, 0, top_k=K, **keys)


def test_a_fixed_cost_stays():
    router = build(cost=0.25)
    train(router, 3)
    assert router.cost().item() == 0.25


class TestMixed:
    def test_draws_anew_each_step_within_the_range(self):
        cost = MixedCost(0.2, most=0.5, seed=0)
        drawn = []
        for _ in range(200):
            drawn.append(cost().item())
            assert cost().item() == drawn[-1], "one draw a step"
            cost.finish_step()
        assert 0 <= min(drawn) < 0.05
        assert 0.45 < max(drawn) <= 0.5
        # six standard deviations of the mean of 200 uniform draws
        assert sum(drawn) / 200 == pytest.approx(0.25, abs=6 * 0.5 / (12 * 200) ** 0.5)

    def test_evaluation_uses_the_cost(self):
        router = build(cost=0.3, mixed_cost=0.5).eval()
        fixed = build(cost=0.3)
        assert router.cost().item() == pytest.approx(0.3)
        assert torch.equal(router(batch(0)).expert_indices, fixed(batch(0)).expert_indices)

    def test_state_resumes_the_draws(self, tmp_path):
        router = build(mixed_cost=0.5, seed=1)
        train(router, 3)
        torch.save(router.state_dict(), tmp_path / "state.pt")
        following = train(router, 4)
        resumed = build(mixed_cost=0.5, seed=9)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert train(resumed, 4) == following
        assert len(set(following)) > 1

    def test_layers_draw_alike_and_seeds_do_not(self):
        def draws(layer: int, seed: int) -> float:
            return CostAware(D, E, layer, top_k=K, mixed_cost=0.5, seed=seed).cost().item()

        assert draws(0, 0) == draws(1, 0) != draws(0, 1)

    def test_does_not_touch_the_global_generator(self):
        before = torch.get_rng_state()
        MixedCost(0.2, most=0.5, seed=0).finish_step()
        assert torch.equal(torch.get_rng_state(), before)


class TestSteered:
    def test_more_devices_than_the_target_raise_the_cost_and_fewer_lower_it(self):
        cost = SteeredCost(0.2, target=2.0, gain=0.1)
        cost.observe(torch.tensor([3, 3, 4]))
        cost.observe(torch.tensor([2]))
        cost.finish_step()
        assert cost().item() == pytest.approx(0.2 + 0.1 * (12 / 4 - 2.0))
        cost.observe(torch.tensor([1, 1]))
        cost.finish_step()
        assert cost().item() == pytest.approx(0.3 - 0.1)

    def test_is_never_negative_and_stays_without_tokens(self):
        cost = SteeredCost(0.05, target=3.0, gain=0.1)
        cost.finish_step()
        assert cost().item() == pytest.approx(0.05)
        cost.observe(torch.tensor([1]))
        cost.finish_step()
        assert cost().item() == 0

    @pytest.mark.parametrize("target", [1.3, 2.0])
    def test_converges_to_the_target(self, target):
        reached = train(build(cost=0.0, target_devices=target, gain=0.05), 150)
        assert reached[0] > 2.5
        assert sum(reached[-50:]) / 50 == pytest.approx(target, abs=0.05)

    def test_evaluation_uses_the_steered_cost_and_does_not_steer(self):
        router = build(cost=0.0, target_devices=1.5)
        train(router, 5)
        steered = router.cost().item()
        router.eval()
        train(router, 5)
        assert router.cost().item() == steered > 0

    def test_state_resumes_the_cost(self):
        router, resumed = (build(cost=cost, target_devices=1.5) for cost in (0.1, 0.4))
        train(router, 3)
        resumed.load_state_dict(router.state_dict())
        assert train(resumed, 3) == train(router, 3)

    def test_steers_by_the_tokens_of_all_ranks(self, monkeypatch):
        monkeypatch.setattr("routers.device_cost.sum_over_ranks", lambda seen: seen + torch.tensor([5, 1]))
        cost = SteeredCost(0.2, target=2.0, gain=0.1)
        cost.observe(torch.tensor([1]))
        cost.finish_step()
        assert cost().item() == pytest.approx(0.2 + 0.1 * (6 / 2 - 2.0))


@pytest.mark.parametrize(
    ("keys", "own"),
    [({"mixed_cost": 0.5}, {"cost._extra_state", "cost.drawn"}), ({"target_devices": 1.3}, {"cost.value"})],
)
def test_a_plain_models_checkpoint_lacks_only_the_costs_state(keys, own):
    plain, router = TopK(D, E, 0, top_k=K), build(cost=0.25, **keys)
    missing, unexpected = router.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == (own, [])
    assert torch.equal(router.gate.weight, plain.gate.weight)
    assert router.eval().cost().item() == 0.25, "as configured"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cost": -0.1}, "cost must not be negative, got -0.1"),
        ({"mixed_cost": -0.1}, "mixed_cost must not be negative, got -0.1"),
        ({"target_devices": 0.5}, "target_devices must be at least 1 .* got 0.5"),
        ({"target_devices": 1.5, "gain": 0.0}, "gain positive, got 1.5 and 0.0"),
        ({"target_devices": 1.5, "mixed_cost": 0.5}, "mixed_cost=0.5, target_devices=1.5"),
    ],
)
def test_bad_costs_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_the_plain_cost_takes_no_note():
    cost = DeviceCost(0.2)
    cost.observe(torch.tensor([4]))
    cost.finish_step()
    assert cost().item() == pytest.approx(0.2)
    assert cost.state_dict() == {}
