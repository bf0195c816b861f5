"""Torch in place of MegaBlocks' native parts, against loops; these need no MegaBlocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.megablocks import standin_kernels, standin_ops

LOADS = [[5, 5, 5], [1, 13, 2], [0, 9, 0], [0, 0, 0]]


@given(values=st.lists(st.integers(-1, 6), max_size=30))
def test_histogram_counts_what_is_in_range(values):
    counts = standin_ops.histogram(torch.tensor(values, dtype=torch.int32), 5)
    assert counts.tolist() == [values.count(number) for number in range(5)]
    assert counts.dtype == torch.int32


def test_histogram_of_rows():
    rows = torch.tensor([[0, 1, 1], [2, 2, 2]])
    assert standin_ops.histogram(rows, 3).tolist() == [[1, 2, 0], [0, 0, 3]]


@given(values=st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_running_totals(values):
    x = torch.tensor([values], dtype=torch.int32)
    inclusive, exclusive = torch.empty_like(x), torch.empty_like(x)
    standin_ops.inclusive_cumsum(x, 1, inclusive)
    standin_ops.exclusive_cumsum(x, 1, exclusive)
    assert inclusive.tolist() == [[sum(values[: i + 1]) for i in range(len(values))]]
    assert exclusive.tolist() == [[sum(values[:i]) for i in range(len(values))]]


@given(values=st.lists(st.integers(0, 7), max_size=30))
def test_sort_is_stable(values):
    x = torch.tensor(values, dtype=torch.int32)
    ordered, origin = torch.empty_like(x), torch.empty_like(x)
    standin_ops.sort(x, 3, ordered, origin)
    assert ordered.tolist() == sorted(values)
    assert origin.tolist() == sorted(range(len(values)), key=lambda i: (values[i], i))


@pytest.mark.parametrize("blocks", [[1, 2], [0, 3, 0, 1], [0, 0]])
def test_every_block_row_has_its_experts_columns(blocks):
    bins = torch.tensor(blocks).cumsum(0).int() * 128
    out = torch.empty(sum(blocks) * 3, dtype=torch.int16)
    standin_ops.indices(bins, 128, sum(blocks), 3, out)
    assert out.tolist() == [
        3 * expert + column for expert, n in enumerate(blocks) for _ in range(n) for column in range(3)
    ]


@pytest.mark.parametrize("loads", LOADS)
def test_replicate_and_its_gradient(loads):
    bins, x = torch.tensor(loads).cumsum(0).int(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    out = torch.empty(2, sum(loads))
    standin_ops.replicate_forward(x, bins, out)
    assert torch.equal(out, torch.cat([x[:, [b]].expand(2, n) for b, n in enumerate(loads)], 1))
    gradient = torch.empty(2, 3)
    standin_ops.replicate_backward(out, bins, gradient)
    torch.testing.assert_close(gradient, x * torch.tensor(loads))


class TestKernels:
    """Six tokens with two choices each, sorted by expert."""

    generator = torch.Generator().manual_seed(0)
    x_TD, weights = torch.randn(6, 3, generator=generator), torch.rand(12, generator=generator)
    order = torch.randint(4, (12,), generator=generator).sort(stable=True)
    bin_ids, indices = order.values.int(), order.indices.int()
    bins = torch.bincount(order.values, minlength=4).cumsum(0).int()

    @pytest.mark.parametrize("weighted", [False, True])
    def test_gather(self, weighted):
        weights = self.weights if weighted else None
        rows_ND = standin_kernels.gather(self.x_TD, self.indices, self.bin_ids, weights, self.bins, 2)
        for row, choice in zip(rows_ND, self.indices.tolist(), strict=True):
            torch.testing.assert_close(row, self.x_TD[choice // 2] * (self.weights[choice] if weighted else 1))

    @pytest.mark.parametrize("weighted", [False, True])
    def test_scatter(self, weighted):
        rows_ND = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
        weights = self.weights if weighted else None
        expected = torch.zeros(6, 3)
        for row, choice in zip(rows_ND, self.indices.tolist(), strict=True):
            expected[choice // 2] += row * (self.weights[choice] if weighted else 1)
        found = standin_kernels.scatter(rows_ND, self.indices, self.bin_ids, weights, self.bins, 2)
        torch.testing.assert_close(found, expected)

    def test_gradient_of_weights_is_scatters(self):
        rows_ND = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
        weights = self.weights.clone().requires_grad_()
        out_TD = standin_kernels.scatter(rows_ND, self.indices, self.bin_ids, weights, self.bins, 2)
        gradient_TD = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
        out_TD.backward(gradient_TD)
        found = standin_kernels.scatter_wgrad(rows_ND, gradient_TD, self.indices, self.bin_ids, self.bins, 2)
        torch.testing.assert_close(found, weights.grad)

    def test_half_precision_stays(self):
        rows_ND = standin_kernels.gather(self.x_TD.bfloat16(), self.indices, self.bin_ids, self.weights, self.bins, 2)
        assert rows_ND.dtype == torch.bfloat16


@pytest.mark.parametrize("loads", LOADS[:3])
@pytest.mark.parametrize("trans_b", [False, True])
def test_gmm_multiplies_each_experts_rows(loads, trans_b):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(sum(loads), 8, generator=generator).requires_grad_()
    b = torch.randn(3, *((12, 8) if trans_b else (8, 12)), generator=generator).requires_grad_()
    expected = torch.cat([x @ (w.T if trans_b else w) for x, w in zip(a.split(loads), b, strict=True)])
    found = standin_kernels.gmm(a, b, torch.tensor(loads), trans_b=trans_b)
    torch.testing.assert_close(found, expected)
    # the gradient of a sum is expanded, which grouped_mm alone does not survive
    gradients = [torch.autograd.grad(y.sum(), (a, b)) for y in (found, expected)]
    for other, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain)
