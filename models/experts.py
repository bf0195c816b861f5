"""The experts of one layer: local compute on tokens that are already sorted by expert.

Seam: `forward(x_ND, tokens_per_expert_E) -> y_ND`, rows in the same order. Rows beyond those of all experts, which a
dispatcher may leave there, come back undefined. Weights are two 3-D tensors, `w1` (E, D, F) and `w2` (E, F, D), in
every backend, so backends are interchangeable on one checkpoint. No biases: grouped GEMM has none.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Experts(nn.Module):
    """Two-layer GELU experts without biases; subclasses say how the products are computed.

    Args:
        num_experts: E.
        dim: model width D.
        hidden_dim: expert width F.
        init_std: standard deviation of the normal initialisation.
        output_std: the same for `w2`, which GPT-2 scales down with depth; None = init_std.

    Attributes:
        columns: columns of `w1` for each of the F hidden units that `activate` makes of them.
    """

    columns: ClassVar[int] = 1

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden_dim: int,
        init_std: float = 0.02,
        output_std: float | None = None,
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, self.columns * hidden_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        nn.init.normal_(self.w1, std=init_std)
        nn.init.normal_(self.w2, std=init_std if output_std is None else output_std)

    def forward(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        raise NotImplementedError

    def activate(self, hidden: Float[Tensor, "N hidden"]) -> Float[Tensor, "N F"]:
        """What stands between the two products."""
        return F.gelu(hidden, approximate="tanh")


class LoopExperts(Experts):
    """One matrix product an expert: the obvious reference that the faster backends must equal."""

    def forward(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        sizes = tokens_per_expert.tolist()
        *rows, beyond = x_ND.split([*sizes, len(x_ND) - sum(sizes)])
        # unbind once: indexing w[e] in the loop would build a full-size gradient for every expert
        weights = zip(rows, self.w1.unbind(0), self.w2.unbind(0), strict=True)
        outputs = [self.activate(x @ w1) @ w2 for x, w1, w2 in weights]
        return torch.cat([*outputs, outputs[0].new_zeros(beyond.shape)])


class GroupedExperts(Experts):
    """torch's grouped matrix product: all experts in one call, no host synchronisation.

    Raises:
        ValueError: D or F whose row is no multiple of 16 bytes, or a dtype grouped_mm lacks.
    """

    def forward(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        device = x_ND.device.type
        if torch.is_autocast_enabled(device):
            # autocast does not reach grouped_mm: cast here, weights stay float32 for the optimiser
            half = torch.get_autocast_dtype(device)
            x_ND, w1, w2 = x_ND.to(half), self.w1.to(half), self.w2.to(half)
        else:
            w1, w2 = self.w1, self.w2
        self._check(x_ND)
        ends = tokens_per_expert.cumsum(0).to(torch.int32)
        hidden_NF = self.activate(F.grouped_mm(x_ND, w1, offs=ends))
        return ContiguousGradient.apply(F.grouped_mm(hidden_NF, w2, offs=ends))

    def _check(self, x: Tensor) -> None:
        if x.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"grouped_mm takes float32 or bfloat16, got {x.dtype}; use experts=loop")
        for size in self.w2.shape[1:]:
            if size * x.element_size() % 16:
                raise ValueError(
                    f"grouped_mm needs rows of a multiple of 16 bytes; width {size} in {x.dtype} is "
                    f"{size * x.element_size()} bytes; use experts=loop or another width"
                )


class ContiguousGradient(torch.autograd.Function):
    """Identity whose gradient is made contiguous: an expanded one (from a sum, say) crashes grouped_mm's backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
