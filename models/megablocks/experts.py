"""MegaBlocks' local compute under our router and dispatcher (Gale et al., 2022, arXiv 2211.15841)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.experts import Experts, GroupedExperts
from models.megablocks.native import load, may_be_called_megablocks, native_parts


class MegaBlocksExperts(Experts):
    """What MegaBlocks does with rows that reached an expert's device: gather, two grouped products, scatter.

    Runs MegaBlocks' own `grouped_permute_and_compute`, as its expert parallelism does on the receiving side. Weights
    are laid out as in every backend, so one checkpoint serves all. Like stock MegaBlocks it waits for the device once a
    call: grouped_gemm wants the loads on the host.

    Raises:
        ImportError: MegaBlocks is not installed.
        ValueError: on call, a dtype that grouped_gemm lacks.
    """

    def __init__(
        self, num_experts: int, dim: int, hidden_dim: int, init_std: float = 0.02, output_std: float | None = None
    ) -> None:
        super().__init__(num_experts, dim, hidden_dim, init_std, output_std)
        load()
        self.half_only = native_parts()["gemm"]

    def forward(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        # here, as importing MegaBlocks is for those who have it
        from models.megablocks.dropless import grouped_permute_and_compute, inclusive_cumsum

        x_ND, counts = x_ND.to(self._dtype(x_ND)), tokens_per_expert.int()
        in_order = torch.arange(len(x_ND), dtype=torch.int32, device=x_ND.device)
        bins = inclusive_cumsum(counts, 0).view(-1)
        # rows of no expert, which a dispatcher may leave at the end, count as the last one's: they only move
        bin_ids = torch.searchsorted(bins, in_order, right=True, out_int32=True).clamp(max=len(counts) - 1)
        # an unbound method: of its object it uses `mlp` alone, and a real one would hold weights of its own
        return grouped_permute_and_compute(self, x_ND, counts, in_order, bin_ids, None, bins, -1, 1)

    def mlp(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        """MegaBlocks' two grouped products, on rows sorted by expert."""
        from models.megablocks.dropless import gmm

        counts = tokens_per_expert.cpu().long()
        hidden_NF = self.activate(gmm(x_ND, self.w1.to(x_ND.dtype), counts))
        return gmm(hidden_NF, self.w2.to(x_ND.dtype), counts)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """What autocast would multiply in: it does not reach grouped_gemm."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if self.half_only and dtype != torch.bfloat16:
            raise ValueError(f"grouped_gemm multiplies bfloat16 only, got {dtype}; use experts=grouped")
        return dtype


def best_experts(num_experts: int, dim: int, hidden_dim: int, **initialisation: float | None) -> Experts:
    """MegaBlocks' experts where its own kernels run, else torch's grouped product: the same weights in both.

    Args:
        initialisation: `init_std` and `output_std` of `Experts`.
    """
    kind = MegaBlocksExperts if may_be_called_megablocks(native_parts()) else GroupedExperts
    return kind(num_experts, dim, hidden_dim, **initialisation)  # pyright: ignore[reportArgumentType]
