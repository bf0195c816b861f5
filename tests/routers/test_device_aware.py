"""Routers that know where experts live, against references that loop over tokens, experts and device sets."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers import device_sets
from routers.cost_aware import CostAware
from routers.device_limited import DeviceLimited, NodeLimited
from routers.devices import DeviceRouter, expected_devices
from routers.drop_aware import DropAware
from routers.losses import count_tokens
from routers.occult import OccultScore, OccultSimilarity
from routers.soft_devices import SoftDevices
from routers.topk import TopK

D, E, T, K = 16, 16, 30, 3
# devices of unequal size, experts in no order
UNEQUAL = np.array([[3, 0, 1, 1, 2, 0, 3, 3, 1, 2, 0, 3, 2, 1, 3, 0]])
METHODS = [
    (CostAware, {"cost": 0.2}),
    (DropAware, {"cost": 0.2}),
    (SoftDevices, {}),
    (DeviceLimited, {"max_devices": 2}),
    (DeviceLimited, {"max_devices": 2, "affinity_experts": 2}),
    (OccultScore, {"max_devices": 2}),
    (OccultSimilarity, {"max_devices": 2}),
]


def draw_logits(seed: int = 0, num_experts: int = E) -> torch.Tensor:
    """Logits (T, E) without ties, which references and routers may break differently."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(T, num_experts, generator=generator).argsort(-1)
    return 6 / num_experts * (rank + 0.9 * torch.rand(T, num_experts, generator=generator))


def draw_table(seed: int, num_devices: int, num_experts: int = E) -> np.ndarray:
    """Device of each expert (1, E), each device with at least one."""
    rng = np.random.default_rng(seed)
    rest = rng.integers(num_devices, size=num_experts - num_devices)
    return rng.permutation(np.concatenate([np.arange(num_devices), rest]))[None]


def best_slowly(scores: list[float], allowed: set[int], top_k: int) -> list[int]:
    return sorted(allowed, key=lambda expert: -scores[expert])[:top_k]


def on(devices: set[int], table: list[int]) -> set[int]:
    return {expert for expert, device in enumerate(table) if device in devices}


def value_slowly(scores: list[float], devices: set[int], table: list[int], top_k: int, cost: float) -> float:
    """What a device set is worth; minus infinity where it holds fewer than K experts."""
    inside = on(devices, table)
    if len(inside) < top_k:
        return float("-inf")
    mass = sum(scores[expert] for expert in best_slowly(scores, inside, top_k))
    full = sum(sorted(scores, reverse=True)[:top_k])
    return mass / full - cost * len(devices)


def greedy_slowly(scores: list[float], table: list[int], top_k: int, cost: float) -> set[int]:
    """Fill the K places first, then by mass; open devices while one gains."""
    full = sum(sorted(scores, reverse=True)[:top_k])
    opened: set[int] = set()

    def worth(devices: set[int]) -> tuple[int, float]:
        inside = best_slowly(scores, on(devices, table), top_k)
        return len(inside), sum(scores[expert] for expert in inside) / full - cost * len(devices)

    while closed := set(table) - opened:
        best = max(closed, key=lambda device: worth(opened | {device}))
        if worth(opened | {best}) <= worth(opened):
            return opened
        opened = opened | {best}
    return opened


def members(sets_TG: torch.Tensor) -> list[set[int]]:
    return [set(token.nonzero().flatten().tolist()) for token in sets_TG]


def devices_of(chosen: list[int], table: list[int]) -> set[int]:
    return {table[expert] for expert in chosen if expert >= 0}


class TestCostAware:
    @given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.3, 0.8, 2.0]))
    def test_set_is_the_best_of_all_subsets(self, seed, num_devices, top_k, cost):
        table = draw_table(seed, num_devices)
        router = CostAware(D, E, 0, top_k=top_k, device_of_expert=table, cost=cost)
        scores_TE = draw_logits(seed).softmax(-1)
        sets = members(router.device_sets(scores_TE))
        chosen = router.select(scores_TE).tolist()
        subsets = [set(s) for n in range(1, num_devices + 1) for s in combinations(range(num_devices), n)]
        home = table[0].tolist()
        for scores, devices, found in zip(scores_TE.tolist(), sets, chosen, strict=True):
            best = max(value_slowly(scores, subset, home, top_k, cost) for subset in subsets)
            assert value_slowly(scores, devices, home, top_k, cost) == pytest.approx(best, abs=1e-5)
            assert found == best_slowly(scores, on(devices, home), top_k)

    @given(st.integers(0, 1_000), st.integers(9, 16), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.3]))
    def test_beyond_eight_devices_is_the_slow_greedy(self, seed, num_devices, top_k, cost):
        table = draw_table(seed, num_devices, num_experts=24)
        router = CostAware(D, 24, 0, top_k=top_k, device_of_expert=table, cost=cost)
        scores_TE = draw_logits(seed, 24).softmax(-1)
        sets, home = members(router.device_sets(scores_TE)), table[0].tolist()
        for scores, devices in zip(scores_TE.tolist(), sets, strict=True):
            expected = value_slowly(scores, greedy_slowly(scores, home, top_k, cost), home, top_k, cost)
            assert value_slowly(scores, devices, home, top_k, cost) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("num_devices", [1, 4, 8, 16])
    @pytest.mark.parametrize("renormalise", [True, False])
    def test_cost_zero_is_topk(self, num_devices, renormalise):
        gate = {"top_k": K, "renormalise": renormalise}
        router = CostAware(D, E, 0, num_devices=num_devices, cost=0.0, **gate)
        plain = TopK(D, E, 0, **gate).route(draw_logits())
        assert all(torch.equal(a, b) for a, b in zip(router.route(draw_logits()), plain, strict=True))

    def test_a_high_cost_takes_one_device(self):
        router = CostAware(D, E, 0, top_k=K, device_of_expert=UNEQUAL, cost=1.0)
        assert (router.devices_reached(router.select(draw_logits().softmax(-1))) == 1).all()

    def test_chunks_do_not_matter(self, monkeypatch):
        scores_TE = draw_logits().softmax(-1)
        router = CostAware(D, E, 0, top_k=K, num_devices=4)
        whole = router.select(scores_TE)
        # seven tokens at a time: sixteen sets of K rows
        monkeypatch.setitem(device_sets.CHUNK_VALUES, "cpu", 7 * 2**4 * K)
        assert torch.equal(router.select(scores_TE), whole)


class TestDropAware:
    @pytest.mark.parametrize("cost", [0.0, 0.2, 0.4])
    def test_keeps_what_the_best_of_all_device_sets_holds(self, cost):
        scores_TE, home = draw_logits().softmax(-1), UNEQUAL[0].tolist()
        chosen = DropAware(D, E, 0, top_k=K, device_of_expert=UNEQUAL, cost=cost).select(scores_TE)
        for scores, found in zip(scores_TE.tolist(), chosen.tolist(), strict=True):
            best = best_slowly(scores, set(range(E)), K)
            mass = sum(scores[expert] for expert in best)

            def worth(devices, scores=scores, best=best, mass=mass):
                return sum(scores[e] for e in best if home[e] in devices) / mass - cost * len(devices)

            sets = [set(one) for size in range(1, 5) for one in combinations(range(4), size)]
            kept = max(sets, key=worth)
            assert found == [expert if home[expert] in kept else -1 for expert in best]

    def test_a_token_keeps_its_best_device_at_any_cost(self):
        chosen = DropAware(D, E, 0, top_k=K, device_of_expert=UNEQUAL, cost=1.0).select(draw_logits().softmax(-1))
        assert (chosen >= 0).any(-1).all()

    def test_cost_beyond_all_mass_is_refused(self):
        with pytest.raises(ValueError, match=r"cost must lie in 0..1, got 1.5"):
            DropAware(D, E, 0, top_k=K, cost=1.5)

    def test_load_is_what_was_kept(self):
        router = DropAware(D, E, 0, top_k=K, device_of_expert=UNEQUAL, cost=0.2)
        routing = router.route(draw_logits())
        kept = routing.expert_indices >= 0
        assert 0 < (~kept).sum() < T * K / 2
        assert count_tokens(routing.expert_indices, E).sum() == kept.sum()
        torch.testing.assert_close(routing.expert_weights.sum(-1), torch.ones(T))

    def test_cost_zero_is_topk(self):
        router = DropAware(D, E, 0, top_k=K, device_of_expert=UNEQUAL, cost=0.0)
        plain = TopK(D, E, 0, top_k=K).route(draw_logits())
        assert all(torch.equal(a, b) for a, b in zip(router.route(draw_logits()), plain, strict=True))


class TestNodeLimited:
    def test_is_device_limited_with_nodes_and_the_sum_of_k_over_m_scores(self):
        scores_TE, nodes = draw_logits().softmax(-1), UNEQUAL // 2
        limited = NodeLimited(D, E, 0, top_k=4, node_of_expert=nodes, max_nodes=1)
        other = DeviceLimited(D, E, 0, top_k=4, device_of_expert=nodes, max_devices=1, affinity_experts=4)
        assert torch.equal(limited.select(scores_TE), other.select(scores_TE))
        assert (limited.devices_reached(limited.select(scores_TE)) == 1).all()


class TestDeviceLimited:
    @given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))
    def test_equals_the_slow_reference(self, seed, max_devices, affinity_experts):
        home = UNEQUAL[0].tolist()
        keys = {"max_devices": max_devices, "affinity_experts": affinity_experts}
        router = DeviceLimited(D, E, 0, top_k=K, device_of_expert=UNEQUAL, **keys)
        scores_TE = draw_logits(seed).softmax(-1)
        for scores, found in zip(scores_TE.tolist(), router.select(scores_TE).tolist(), strict=True):
            affinity = [
                sum(scores[expert] for expert in best_slowly(scores, on({device}, home), affinity_experts))
                for device in range(4)
            ]
            nearest = set(sorted(range(4), key=lambda device: -affinity[device])[:max_devices])
            assert found == best_slowly(scores, on(nearest, home), K)

    def test_one_device_is_that_of_the_top_1_expert(self):
        router = DeviceLimited(D, E, 0, top_k=K, device_of_expert=UNEQUAL, max_devices=1)
        scores_TE, home = draw_logits().softmax(-1), UNEQUAL[0].tolist()
        for scores, found in zip(scores_TE.tolist(), router.select(scores_TE).tolist(), strict=True):
            own = home[scores.index(max(scores))]
            assert found == best_slowly(scores, on({own}, home), K)

    @pytest.mark.parametrize(("top_k", "max_devices", "summed"), [(4, 2, 2), (2, 2, 1), (1, 2, 1), (5, 2, 2)])
    def test_v3_sums_k_over_m(self, top_k, max_devices, summed):
        router = DeviceLimited(D, E, 0, top_k=top_k, max_devices=max_devices, affinity_experts=None)
        assert router.affinity_experts == summed


@pytest.mark.parametrize("method", [DeviceLimited, OccultScore, OccultSimilarity])
def test_all_devices_allowed_is_topk(method):
    router = method(D, E, 0, top_k=K, device_of_expert=UNEQUAL, max_devices=4)
    plain = TopK(D, E, 0, top_k=K).route(draw_logits())
    assert all(torch.equal(a, b) for a, b in zip(router.route(draw_logits()), plain, strict=True))


class TestOccult:
    @given(st.integers(0, 10_000), st.integers(1, 3))
    def test_equals_the_slow_reference(self, seed, max_devices):
        keys = {"top_k": K, "device_of_expert": UNEQUAL, "max_devices": max_devices}
        by_score, by_similarity = OccultScore(D, E, 0, **keys), OccultSimilarity(D, E, 0, **keys)
        scores_TE, home = draw_logits(seed).softmax(-1), UNEQUAL[0].tolist()
        similarity = by_similarity.similarity().tolist()
        routed = zip(scores_TE.tolist(), by_score.select(scores_TE), by_similarity.select(scores_TE), strict=True)
        for scores, of_score, of_similarity in routed:
            best = best_slowly(scores, set(range(E)), K)
            mass = [sum(scores[expert] for expert in best if home[expert] == device) for device in range(4)]
            kept = set(sorted(range(4), key=lambda device: -mass[device])[:max_devices])
            free = on(kept, home) - set(best)
            replaced = []
            for expert in best:
                if home[expert] not in kept:
                    pruned, expert = expert, max(free, key=lambda other: similarity[expert][other])
                    assert home[pruned] != home[expert]
                    free = free - {expert}
                replaced.append(expert)
            assert of_score.tolist() == best_slowly(scores, on(kept, home), K)
            assert of_similarity.tolist() == replaced

    def test_similarity_is_the_cosine_of_gate_weights(self):
        router = OccultSimilarity(D, E, 0, top_k=K)
        one, other = router.gate.weight[2].tolist(), router.gate.weight[5].tolist()
        cosine = np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
        assert router.similarity()[2, 5].item() == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(("method", "keys"), METHODS)
class TestAllMethods:
    def test_permuting_the_experts_permutes_the_loads(self, method, keys):
        permutation = torch.randperm(E, generator=torch.Generator().manual_seed(1))
        router = method(D, E, 0, top_k=K, device_of_expert=UNEQUAL, **keys)
        permuted = method(D, E, 0, top_k=K, device_of_expert=UNEQUAL[:, permutation], **keys)
        with torch.no_grad():
            # expert e of the permuted router is expert permutation[e] of the other
            permuted.gate.weight.copy_(router.gate.weight[permutation])
        x_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(2))
        loads, other = (count_tokens(r(x_TD).expert_indices, E) for r in (router, permuted))
        assert torch.equal(loads[permutation], other)

    def test_reaches_no_more_devices_than_allowed(self, method, keys):
        router = method(D, E, 0, top_k=K, device_of_expert=UNEQUAL, **keys)
        chosen, home = router.select(draw_logits().softmax(-1)), UNEQUAL[0].tolist()
        reached = [len(devices_of(token, home)) for token in chosen.tolist()]
        assert router.devices_reached(chosen).tolist() == reached
        assert max(reached) <= keys.get("max_devices", K)

    def test_a_plain_models_checkpoint_fits(self, method, keys):
        plain, router = TopK(D, E, 0, top_k=K), method(D, E, 0, top_k=K, **keys)
        router.load_state_dict(plain.state_dict())
        assert router.state_dict().keys() == plain.state_dict().keys()

    def test_the_row_of_the_layer_counts_and_empty_devices_do_not(self, method, keys):
        table = np.stack([np.arange(E) // 4, np.arange(E) % 2 + 5])
        router = method(D, E, 1, top_k=K, device_of_expert=table, **keys)
        assert router.device_of_expert.tolist() == [0, 1] * (E // 2)
        assert router.num_devices == 2


class TestSoftPenalty:
    def test_expected_devices_equals_the_slow_reference(self):
        scores_TE, home = draw_logits().softmax(-1), UNEQUAL[0].tolist()
        total = 0.0
        for scores in scores_TE.tolist():
            for device in range(4):
                total += 1 - (1 - sum(scores[expert] for expert in on({device}, home))) ** K
        found = expected_devices(scores_TE, torch.tensor(home), K).item()
        assert found == pytest.approx(total / T, rel=1e-5)

    def test_ranges_from_one_device_to_independent_draws(self):
        home = torch.arange(E) // 4
        one_device = torch.zeros(T, E)
        one_device[:, 4:8] = 0.25
        assert expected_devices(one_device, home, K).item() == pytest.approx(1)
        anywhere = expected_devices(torch.full((T, E), 1 / E), home, K).item()
        assert anywhere == pytest.approx(4 * (1 - 0.75**K))

    def test_descending_it_reaches_fewer_devices(self):
        router = SoftDevices(D, E, 0, top_k=K, penalty=1.0)
        x_TD = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
        before = router.devices_reached(router(x_TD).expert_indices).float().mean()
        optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
        for _ in range(30):
            logits = router.logits(x_TD)
            optimizer.zero_grad()
            router.losses(logits, router.route(logits))["devices"].backward()
            optimizer.step()
        after = router.devices_reached(router(x_TD).expert_indices).float().mean()
        assert after < 0.7 * before

    def test_is_left_out_without_a_weight(self):
        router = CostAware(D, E, 0, top_k=K)
        assert router.losses(draw_logits(), router.route(draw_logits())) == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"device_of_expert": np.zeros((2, 5), int)}, r"shape \(2, 5\), layer 1 .* \(more than 1, 16\)"),
        ({"device_of_expert": np.zeros((1, E), int)}, r"shape \(1, 16\), layer 1 .* \(more than 1, 16\)"),
        ({"device_of_expert": np.full((2, E), -1)}, "device numbers from 0, got -1"),
        ({"num_devices": 0}, "1..num_experts = 16, got 0"),
        ({"num_devices": 17}, "1..num_experts = 16, got 17"),
        ({"penalty": -0.5}, "penalty .* got -0.5"),
    ],
)
def test_bad_devices_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        DeviceRouter(D, E, 1, top_k=K, **keys)


@pytest.mark.parametrize("method", [DeviceLimited, OccultScore, OccultSimilarity])
def test_devices_without_room_are_refused(method):
    with pytest.raises(ValueError, match=r"top_k is 7, but 2 device\(s\) may hold only 6 experts"):
        method(D, E, 0, top_k=7, device_of_expert=np.array([[0, 0, 0, 1, 1, 1] + 10 * [2]]), max_devices=2)
    with pytest.raises(ValueError, match=r"1..4 devices here, got 5"):
        method(D, E, 0, top_k=2, max_devices=5)


def test_no_affinity_is_refused():
    with pytest.raises(ValueError, match=r"affinity_experts must be at least 1, .* got 0"):
        DeviceLimited(D, E, 0, top_k=2, affinity_experts=0)
