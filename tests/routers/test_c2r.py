"""C2R and its control with random lists: what they promise beyond the contract."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers.c2r import C2R
from routers.c2r_random import RandomLists
from routers.losses import count_tokens
from routers.topk import TopK

D, E, T, L = 16, 12, 40, 3


def draw_profile(seed: int = 0) -> np.ndarray:
    """Counts (L, E, E) as of a profile: symmetric, no self, no expert without partners; with ties."""
    upper = np.triu(np.random.default_rng(seed).integers(1, 9, (L, E, E)), k=1)
    return upper + upper.transpose(0, 2, 1)


def draw_logits(seed: int = 0) -> torch.Tensor:
    """Logits (T, E) without ties, which references and routers may break differently."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(T, E, generator=generator).argsort(-1)
    return 0.5 * (rank + 0.9 * torch.rand(T, E, generator=generator))


def top_list_slowly(counts: list[int], expert: int, top_t: int) -> list[int]:
    """T most co-activated partners of an expert; of equal counts the lower number first."""
    others = [other for other in range(E) if other != expert]
    return sorted(others, key=lambda other: (-counts[other], other))[:top_t]


def choose_slowly(logits: list[float], lists: dict[int, list[int]], top_k: int) -> list[int]:
    """The top-1 expert and the K - 1 best-scored of its list, best first."""
    first = max(range(E), key=lambda expert: logits[expert])
    return [first, *sorted(lists[first], key=lambda expert: -logits[expert])[: top_k - 1]]


def lists_of(router: C2R | RandomLists) -> dict[int, list[int]]:
    return {i: [j for j in range(E) if router.allowed[i, j] and j != i] for i in range(E)}


class TestC2R:
    @given(
        st.integers(0, 10_000),
        st.integers(0, L - 1),
        st.integers(1, 4).flatmap(lambda k: st.tuples(st.just(k), st.integers(max(1, k - 1), E - 1))),
    )
    def test_equals_the_slow_reference(self, seed, layer, sizes):
        top_k, top_t = sizes
        profile, logits_TE = draw_profile(seed), draw_logits(seed)
        router = C2R(D, E, layer, top_k=top_k, top_t=top_t, collaboration=profile)
        lists = {i: top_list_slowly(profile[layer, i].tolist(), i, top_t) for i in range(E)}
        expected = [choose_slowly(logits, lists, top_k) for logits in logits_TE.tolist()]
        assert router.route(logits_TE).expert_indices.tolist() == expected

    @pytest.mark.parametrize("renormalise", [True, False])
    @pytest.mark.parametrize("top_k", [1, 2, 4])
    def test_with_all_partners_is_topk(self, top_k, renormalise):
        gate = {"top_k": top_k, "renormalise": renormalise}
        router = C2R(D, E, 0, top_t=E - 1, collaboration=draw_profile(), **gate)
        plain = TopK(D, E, 0, **gate).route(draw_logits())
        assert all(torch.equal(a, b) for a, b in zip(router.route(draw_logits()), plain, strict=True))

    def test_weights_are_the_two_published_ones(self):
        logits_TE = draw_logits()
        kept_softmax, full_softmax = (
            C2R(D, E, 0, top_k=3, top_t=4, collaboration=draw_profile(), renormalise=renormalise).route(logits_TE)
            for renormalise in (True, False)
        )
        kept_logits = logits_TE.gather(1, kept_softmax.expert_indices)
        torch.testing.assert_close(kept_softmax.expert_weights, kept_logits.softmax(-1))
        full = logits_TE.softmax(-1).gather(1, full_softmax.expert_indices)
        assert torch.equal(full_softmax.expert_weights, full)

    def test_permuting_the_experts_permutes_the_loads(self):
        permutation = torch.randperm(E, generator=torch.Generator().manual_seed(1))
        # without ties, which the lower number wins
        counts = np.arange(E * E).reshape(1, E, E)
        profile = counts + counts.transpose(0, 2, 1) + np.maximum(counts, counts.transpose(0, 2, 1)) ** 2
        permuted = profile[:, permutation][:, :, permutation]
        logits_TE = draw_logits()
        routing = C2R(D, E, 0, top_k=3, top_t=4, collaboration=profile).route(logits_TE)
        other = C2R(D, E, 0, top_k=3, top_t=4, collaboration=permuted).route(logits_TE[:, permutation])
        assert torch.equal(routing.expert_indices, permutation[other.expert_indices])
        assert torch.equal(count_tokens(routing.expert_indices, E)[permutation], count_tokens(other.expert_indices, E))

    def test_reads_a_profile_file(self, tmp_path):
        np.savez(tmp_path / "profile.npz", collaboration=draw_profile(), tokens=np.array(5))
        read = C2R(D, E, 1, top_k=2, top_t=3, collaboration=str(tmp_path / "profile.npz"))
        given_array = C2R(D, E, 1, top_k=2, top_t=3, collaboration=draw_profile())
        assert torch.equal(read.allowed, given_array.allowed)

    def test_a_file_without_counts_is_named(self, tmp_path):
        np.savez(tmp_path / "loads.npz", tokens=np.array(5))
        with pytest.raises(ValueError, match=r"loads.npz holds \['tokens'\], a profile holds collaboration"):
            C2R(D, E, 0, top_k=2, collaboration=tmp_path / "loads.npz")

    def test_no_profile_says_what_writes_one(self):
        with pytest.raises(ValueError, match=r"router.collaboration .* `python -m benchmarks.profile`"):
            C2R(D, E, 0, top_k=2)

    @pytest.mark.parametrize(("num_experts", "layer"), [(E + 4, 0), (E, L)])
    def test_a_profile_of_another_model_is_refused(self, num_experts, layer):
        message = rf"shape \(3, 12, 12\), layer {layer} .* \(more than {layer}, {num_experts}, {num_experts}\)"
        with pytest.raises(ValueError, match=message):
            C2R(D, num_experts, layer, top_k=2, collaboration=draw_profile())


class TestRandomLists:
    @pytest.mark.parametrize("top_t", [2, 5, E - 1])
    def test_every_expert_has_t_partners(self, top_t):
        router = RandomLists(D, E, 0, top_k=2, top_t=top_t)
        assert all(len(partners) == top_t for partners in lists_of(router).values())
        assert router.allowed.diagonal().all()

    def test_equals_the_slow_reference(self):
        router = RandomLists(D, E, 0, top_k=3, top_t=4)
        lists, logits_TE = lists_of(router), draw_logits()
        expected = [choose_slowly(logits, lists, 3) for logits in logits_TE.tolist()]
        assert router.route(logits_TE).expert_indices.tolist() == expected

    def test_lists_differ_by_layer_and_seed_and_are_reproducible(self):
        places = [(layer, seed) for layer in range(2) for seed in range(2)]
        lists = [RandomLists(D, E, layer, top_k=2, top_t=3, seed=seed).allowed for layer, seed in places]
        assert all(not torch.equal(a, b) for i, a in enumerate(lists) for b in lists[:i])
        again = RandomLists(D, E, 1, top_k=2, top_t=3, seed=1)
        assert torch.equal(again.allowed, lists[-1])

    def test_partners_are_equally_likely(self):
        drawn = torch.stack([RandomLists(D, E, 0, top_k=2, top_t=3, seed=seed).allowed for seed in range(400)]).sum(0)
        share = 3 / (E - 1)
        six_deviations = 6 * (400 * share * (1 - share)) ** 0.5
        assert (drawn[~torch.eye(E, dtype=torch.bool)] - 400 * share).abs().max() < six_deviations


@pytest.mark.parametrize(
    ("top_k", "top_t", "message"),
    [(4, 2, "top_t is 2; top_k = 4"), (2, E, r"top_t is 12; with 12 experts .* 1..11"), (1, 0, "top_t is 0")],
)
@pytest.mark.parametrize("method", [C2R, RandomLists])
def test_impossible_lists_are_refused(method, top_k, top_t, message):
    profile = {"collaboration": draw_profile()} if method is C2R else {}
    with pytest.raises(ValueError, match=message):
        method(D, E, 0, top_k=top_k, top_t=top_t, **profile)


@pytest.mark.parametrize("router", [C2R(D, E, 0, top_k=2, collaboration=draw_profile()), RandomLists(D, E, 0, top_k=2)])
def test_a_plain_models_checkpoint_lacks_only_the_lists(router):
    plain = TopK(D, E, 0, top_k=2)
    lists = router.allowed.clone()
    assert router.load_state_dict(plain.state_dict(), strict=False) == (["allowed"], [])
    assert torch.equal(router.gate.weight, plain.gate.weight)
    assert torch.equal(router.allowed, lists)


def test_lists_are_part_of_a_checkpoint():
    router, other = (RandomLists(D, E, 0, top_k=2, top_t=2, seed=seed) for seed in (0, 1))
    assert not torch.equal(router.allowed, other.allowed)
    other.load_state_dict(router.state_dict())
    assert torch.equal(router.allowed, other.allowed)
