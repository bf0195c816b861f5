"""Plain torch in place of MegaBlocks' Triton kernels and of grouped_gemm, for machines without CUDA.

Rows sorted by expert are a copy of tokens: row i is choice `indices[i]` of T * K, so it holds token indices[i] // K.
Arguments, order and names are MegaBlocks' (Gale et al., 2022, arXiv 2211.15841); `bin_ids` and `bins` matter only where
rows are padded, which these are not.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from models.experts import ContiguousGradient


def gather(
    x: Float[Tensor, "T D"],
    indices: Int[Tensor, " N"],
    bin_ids: Int[Tensor, " N"],
    weights: Float[Tensor, " N"] | None,
    bins: Int[Tensor, " E"],
    top_k: int,
) -> Float[Tensor, "N D"]:
    """Each row's token, times the choice's weight where there are weights."""
    rows_ND = x[indices // top_k]
    return rows_ND if weights is None else (rows_ND * weights[indices, None]).to(x.dtype)


def scatter(
    x: Float[Tensor, "N D"],
    indices: Int[Tensor, " N"],
    bin_ids: Int[Tensor, " N"],
    weights: Float[Tensor, " N"] | None,
    bins: Int[Tensor, " E"],
    top_k: int,
) -> Float[Tensor, "T D"]:
    """Sum of each token's K rows, weighted where there are weights."""
    weighted_ND = x if weights is None else (x * weights[indices, None]).to(x.dtype)
    by_choice_ND = x.new_empty(x.shape).index_copy(0, indices.long(), weighted_ND)
    return by_choice_ND.view(-1, top_k, x.shape[1]).sum(1)


def scatter_wgrad(
    x: Float[Tensor, "N D"],
    grad: Float[Tensor, "T D"],
    indices: Int[Tensor, " N"],
    bin_ids: Int[Tensor, " N"],
    bins: Int[Tensor, " E"],
    top_k: int,
) -> Float[Tensor, " N"]:
    """Gradient of scatter's weights: each choice's row times its token's gradient."""
    products_N = (x * grad[indices // top_k]).sum(1)
    return products_N.new_empty(products_N.shape).index_copy(0, indices.long(), products_N)


def gmm(
    a: Float[Tensor, "N in"], b: Float[Tensor, "E _ _"], batch_sizes: Int[Tensor, " E"], trans_b: bool = False
) -> Float[Tensor, "N out"]:
    """Rows of expert e times b[e] (in, out), or times its transpose; batch_sizes = rows of each expert."""
    weights = b.transpose(1, 2) if trans_b else b
    ends = batch_sizes.cumsum(0).int().to(a.device)
    return ContiguousGradient.apply(F.grouped_mm(a, weights, offs=ends))
