import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers.losses import count_tokens, load_balance_loss, sequence_balance_loss, squared_variation, z_loss

E = 6


def draw_batch(seed: int, num_tokens: int, top_k: int, absent: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (T, E) and K distinct experts a token, of which a share is left out."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, E, generator=generator)
    chosen = torch.rand(num_tokens, E, generator=generator).argsort(-1)[:, :top_k]
    left_out = torch.rand(chosen.shape, generator=generator) < absent
    return logits, torch.where(left_out, -1, chosen)


def balance_slowly(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """E * sum_e f_e p_e with loops; f_e over the pairs that were routed."""
    routed = [expert for token in chosen for expert in token if expert >= 0]
    total = 0.0
    for expert in range(E):
        f = routed.count(expert) / max(1, len(routed))
        p = sum(token[expert] for token in scores) / len(scores)
        total += f * p
    return E * total


batches = st.tuples(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, E), st.sampled_from([0.0, 0.4, 1.0]))


class TestLoadBalance:
    @given(batches)
    def test_equals_the_slow_reference_and_stays_in_its_range(self, batch):
        logits, chosen = draw_batch(*batch)
        scores = logits.softmax(-1)
        loss = load_balance_loss(scores, chosen).item()
        assert loss == pytest.approx(balance_slowly(scores.tolist(), chosen.tolist()), rel=1e-4)
        assert 0 <= loss <= E

    @pytest.mark.parametrize("top_k", [1, 2, E])
    def test_balanced_is_one(self, top_k):
        in_turn = torch.arange(E * top_k).view(E, top_k) % E
        assert load_balance_loss(torch.randn(E, E).softmax(-1), in_turn).item() == pytest.approx(1.0, rel=1e-5)
        anyhow = torch.zeros(E, 1, dtype=torch.int64)
        assert load_balance_loss(torch.full((E, E), 1 / E), anyhow).item() == pytest.approx(1.0, rel=1e-5)

    def test_collapse_is_the_number_of_experts(self):
        scores = torch.nn.functional.one_hot(torch.full((9,), 2), E).float()
        assert load_balance_loss(scores, torch.full((9, 1), 2)).item() == pytest.approx(E)

    def test_pushes_down_the_expert_with_the_highest_load(self):
        logits = torch.zeros(9, E, requires_grad=True)
        load_balance_loss(logits.softmax(-1), torch.full((9, 1), 2)).backward()
        assert logits.grad[:, 2].min() > 0
        assert logits.grad.sum(0).argmax() == 2

    @pytest.mark.parametrize("num_tokens", [0, 5])
    def test_nothing_routed_is_zero(self, num_tokens):
        scores = torch.full((num_tokens, E), 1 / E, requires_grad=True)
        loss = load_balance_loss(scores, torch.full((num_tokens, 2), -1))
        loss.backward()
        assert loss.item() == 0
        assert scores.grad.shape == scores.shape


class TestSequenceBalance:
    @given(batches, st.integers(1, 4))
    def test_is_the_mean_over_sequences(self, batch, num_sequences):
        seed, length, top_k, absent = batch
        logits, chosen = draw_batch(seed, num_sequences * length, top_k, absent)
        scores = logits.softmax(-1)
        alone = [
            balance_slowly(some.tolist(), their.tolist())
            for some, their in zip(scores.split(length), chosen.split(length), strict=True)
        ]
        loss = sequence_balance_loss(scores, chosen, num_sequences).item()
        assert loss == pytest.approx(sum(alone) / num_sequences, rel=1e-4)

    def test_balance_of_the_batch_is_not_enough(self):
        scores = torch.nn.functional.one_hot(torch.arange(E).repeat_interleave(3), E).float()
        chosen = torch.arange(E).repeat_interleave(3)[:, None]
        assert load_balance_loss(scores, chosen).item() == pytest.approx(1.0)
        assert sequence_balance_loss(scores, chosen, E).item() == pytest.approx(E)

    def test_no_token_is_zero(self):
        assert sequence_balance_loss(torch.zeros(0, E), torch.zeros(0, 2, dtype=torch.int64), 3).item() == 0

    @pytest.mark.parametrize("num_sequences", [0, 4])
    def test_sequences_that_do_not_divide_the_tokens_are_named(self, num_sequences):
        with pytest.raises(ValueError, match=f"9 tokens .* into {num_sequences} sequences"):
            sequence_balance_loss(torch.zeros(9, E), torch.zeros(9, 2, dtype=torch.int64), num_sequences)


class TestSquaredVariation:
    @given(st.lists(st.floats(0.0, 100.0, width=32), min_size=1, max_size=9))
    def test_equals_the_slow_reference(self, amounts):
        found = squared_variation(torch.tensor(amounts)).item()
        expected = (statistics.pstdev(amounts) / statistics.fmean(amounts)) ** 2 if sum(amounts) > 1e-3 else found
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)

    def test_nothing_is_zero_and_flat(self):
        amounts = torch.zeros(E, requires_grad=True)
        loss = squared_variation(amounts)
        loss.backward()
        assert loss.item() == 0
        assert amounts.grad.tolist() == [0] * E


class TestZLoss:
    @given(st.integers(0, 10_000), st.integers(1, 20))
    def test_equals_the_slow_reference(self, seed, num_tokens):
        logits, _ = draw_batch(seed, num_tokens, 1)
        slowly = [math.log(sum(math.exp(value) for value in token)) ** 2 for token in logits.tolist()]
        assert z_loss(logits).item() == pytest.approx(sum(slowly) / num_tokens, rel=1e-4)

    def test_large_logits_do_not_overflow(self):
        assert z_loss(torch.full((2, E), 300.0)).item() == pytest.approx((300 + math.log(E)) ** 2, rel=1e-5)

    def test_no_token_is_zero(self):
        assert z_loss(torch.zeros(0, E)).item() == 0


class TestCount:
    @given(batches)
    def test_equals_counting(self, batch):
        _, chosen = draw_batch(*batch)
        routed = chosen.flatten().tolist()
        assert count_tokens(chosen, E).tolist() == [routed.count(expert) for expert in range(E)]

    @given(batches, batches)
    def test_parts_add_up(self, first, second):
        top_k = min(first[2], second[2])
        parts = [draw_batch(*batch)[1][:, :top_k] for batch in (first, second)]
        together = count_tokens(torch.cat(parts), E)
        assert torch.equal(together, count_tokens(parts[0], E) + count_tokens(parts[1], E))
