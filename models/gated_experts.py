"""Gated experts: SwiGLU (Shazeer, 2020, arXiv:2002.05202), as in Mixtral, Qwen's and DeepSeek's MoE layers."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.experts import GroupedExperts


class GatedExperts(GroupedExperts):
    """Two-layer gated SiLU experts without biases (Shazeer, 2020, equation 6): (silu(x W) * x V) W2.

    `w1` (E, D, 2F) holds W in its first F columns and V in its last, `w2` is (E, F, D). Arguments as of `Experts`.

    Raises:
        ValueError: D or F whose row is no multiple of 16 bytes, or a dtype grouped_mm lacks.
    """

    columns: ClassVar[int] = 2

    def activate(self, hidden: Float[Tensor, "N hidden"]) -> Float[Tensor, "N F"]:
        return SwiGLU.apply(hidden)

    @torch.no_grad()
    def load_hugging_face(self, gate_up_proj: Float[Tensor, "E F2 D"], down_proj: Float[Tensor, "E D F"]) -> None:
        """Take over the experts of a Hugging Face block, such as Qwen2-MoE's, which hold each matrix transposed.

        Raises:
            ValueError: weights of another shape.
        """
        for name, own, given in (("gate_up_proj", self.w1, gate_up_proj), ("down_proj", self.w2, down_proj)):
            if own.mT.shape != given.shape:
                raise ValueError(f"{name} must have shape {tuple(own.mT.shape)}, got {tuple(given.shape)}")
        self.w1.copy_(gate_up_proj.mT)
        self.w2.copy_(down_proj.mT)

    def to_hugging_face(self) -> dict[str, Tensor]:
        """`gate_up_proj` (E, 2F, D) and `down_proj` (E, D, F), copied."""
        weights = {"gate_up_proj": self.w1, "down_proj": self.w2}
        return {name: weight.detach().mT.contiguous() for name, weight in weights.items()}


class SwiGLU(torch.autograd.Function):
    """Gate and up (N, 2F) side by side to silu(gate) * up (N, F).

    Keeps nothing but its input, and its gradient is written where it belongs: autograd would keep silu(gate) too and
    join two halves by a copy.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        gate_NF, up_NF = hidden.chunk(2, -1)
        return F.silu(gate_NF).mul_(up_NF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NF: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        gate_NF, up_NF = hidden.chunk(2, -1)
        gradient = torch.empty_like(hidden)
        of_gate_NF, of_up_NF = gradient.chunk(2, -1)
        torch.ops.aten.silu.out(gate_NF, out=of_up_NF)
        of_up_NF.mul_(gradient_NF)
        torch.mul(gradient_NF, up_NF, out=of_gate_NF)
        torch.ops.aten.silu_backward.grad_input(of_gate_NF, gate_NF, grad_input=of_gate_NF)
        return gradient
