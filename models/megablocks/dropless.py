"""What this project uses of MegaBlocks, in one place, and its dMoE with an overflow mended.

Importing this imports MegaBlocks: only after `load`, which puts stand-ins where native parts are missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import megablocks.grouped_gemm_util as grouped_gemm_util  # pyright: ignore[reportMissingImports]
import megablocks.ops as ops  # pyright: ignore[reportMissingImports]
import torch
from jaxtyping import Float, Int
from megablocks.layers.arguments import Arguments  # pyright: ignore[reportMissingImports]
from megablocks.layers.dmoe import ParallelDroplessMLP, dMoE  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from routers.base import Router

inclusive_cumsum: Callable[..., Tensor] = ops.inclusive_cumsum
grouped_permute_and_compute: Callable[..., Any] = ParallelDroplessMLP.grouped_permute_and_compute
gmm: Callable[..., Tensor] = grouped_gemm_util.ops.gmm  # pyright: ignore[reportOptionalMemberAccess]


class WideIndices(ParallelDroplessMLP):
    """Block indices in 32 bits: Triton multiplies them by 128 in their own width, and int16 overflows at block 256."""

    def topology(self, x: Float[Tensor, "N D"], padded_bins: Int[Tensor, " E"]) -> Any:
        matrix = super().topology(x, padded_bins)
        for name in ("_row_indices", "_column_indices", "_column_indices_t"):
            setattr(matrix, name, getattr(matrix, name).int())
        return matrix


class WideDMoE(dMoE):
    """dMoE over `WideIndices`, through the method that MegaBlocks has for that."""

    def _init_experts_mlp(self, args: Arguments) -> WideIndices:
        return WideIndices(args)


def stock_dmoe(
    router: Router, dim: int, hidden_dim: int, mlp_impl: str, init_std: float, output_std: float
) -> WideDMoE:
    """A dMoE with our router at its `router`, where and in what precision the model is being built.

    MegaBlocks' defaults are fp16 on CUDA, biases, and a loss of its own kept in a global list: none of these here.
    """
    arguments = Arguments(
        hidden_size=dim,
        ffn_hidden_size=hidden_dim,
        moe_num_experts=router.num_experts,
        moe_top_k=router.num_choices,
        moe_loss_weight=0.0,
        bias=False,
        return_bias=False,
        fp16=False,
        device=torch.empty(0).device,
        mlp_impl="grouped",
        init_method=partial(nn.init.normal_, std=init_std),
        output_layer_init_method=partial(nn.init.normal_, std=output_std),
    )
    # afterwards, as the constructor refuses sparse on any Triton since 3.2
    arguments.mlp_impl = mlp_impl
    layer = WideDMoE(arguments)
    layer.router = router  # pyright: ignore[reportAttributeAccessIssue]
    return layer
