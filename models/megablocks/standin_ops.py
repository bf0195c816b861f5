"""Plain torch in place of MegaBlocks' compiled extension `megablocks_ops`, for machines without CUDA.

Same seven functions, same arguments (Gale et al., 2022, arXiv 2211.15841: MegaBlocks): most write into their last
argument, because the extension does. `bins` are running totals: bin b ends before element bins[b].
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def inclusive_cumsum(x: Int[Tensor, "rows n"], dim: int, out: Int[Tensor, "rows n"]) -> None:
    """Running totals along `dim`."""
    out.copy_(x.cumsum(dim))


def exclusive_cumsum(x: Int[Tensor, "rows n"], dim: int, out: Int[Tensor, "rows n"]) -> None:
    """Running totals before each element."""
    out.copy_(x.cumsum(dim) - x)


def histogram(x: Int[Tensor, "*rows n"], num_bins: int) -> Int[Tensor, "*rows num_bins"]:
    """How often each of 0..num_bins - 1 occurs, a row at a time; other values are not counted."""
    inside = (x >= 0) & (x < num_bins)
    counts = torch.zeros(*x.shape[:-1], num_bins, dtype=torch.int32, device=x.device)
    return counts.scatter_add_(-1, x.clamp(0, num_bins - 1).long(), inside.int())


def sort(x: Int[Tensor, " n"], end_bit: int, x_out: Int[Tensor, " n"], iota_out: Int[Tensor, " n"]) -> None:
    """Stable sort of numbers below 2 ** end_bit, and where each came from."""
    ordered, origin = x.sort(stable=True)
    x_out.copy_(ordered)
    iota_out.copy_(origin)


def indices(
    padded_bins: Int[Tensor, " E"], block_size: int, block_rows: int, blocks_per_row: int, out: Int[Tensor, " blocks"]
) -> None:
    """Column of each non-zero block: a block row that expert e owns has e's blocks_per_row columns, in order."""
    rows_of_expert = sizes(padded_bins) // block_size
    owner = torch.arange(len(padded_bins), device=out.device).repeat_interleave(rows_of_expert)
    out.copy_((owner[:, None] * blocks_per_row + torch.arange(blocks_per_row, device=out.device)).flatten())


def replicate_forward(x: Tensor, bins: Int[Tensor, " b"], out: Tensor) -> None:
    """Element b of each row (rows, b) as often as bin b is long."""
    out.copy_(x.repeat_interleave(sizes(bins), dim=1))


def replicate_backward(
    gradient: Float[Tensor, "rows n"], bins: Int[Tensor, " b"], out: Float[Tensor, "rows b"]
) -> None:
    """Sum of each bin's gradients."""
    owner = torch.arange(len(bins), device=bins.device).repeat_interleave(sizes(bins))
    out.zero_().index_add_(1, owner, gradient)


def sizes(bins: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Lengths of bins from their ends."""
    return bins.diff(prepend=bins.new_zeros(1)).long()
