"""The stock dMoE layer of MegaBlocks in our Transformer: the baseline (Gale et al., 2022, arXiv 2211.15841).

Routing and losses are our router's; everything after the choice is MegaBlocks' code and its weights' layout.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from models.megablocks.native import load, triton_runs
from models.moe import MoEOutput
from routers.base import Router, Routing
from routers.losses import count_tokens

BLOCK = 128


class OneDevicePlan(NamedTuple):
    """What dMoE sent: nothing leaves the device.

    Attributes:
        rows_sent: (1,) rows that its experts compute, one for each choice.
        metadata_bytes_sent: (1,) bytes beside them: none.
    """

    rows_sent: Int[Tensor, " 1"]
    metadata_bytes_sent: Int[Tensor, " 1"]


class StockDMoE(nn.Module):
    """MegaBlocks' dMoE where an MoELayer stands, our router at its `router`.

    State dicts have an MoELayer's names and layout (`experts.w1` (E, D, F), `experts.w2` (E, F, D)), so one checkpoint
    serves both; in memory the weights are MegaBlocks' (E F, D).

    Args:
        router: ours; it must not drop.
        dim: model width D.
        hidden_dim: expert width F.
        init_std: standard deviation of the normal initialisation.
        output_std: the same for the second matrix; None = init_std.
        capacity_factor: must be None: dMoE drops nothing.
        mlp_impl: "grouped" (grouped_gemm) or "sparse" (Triton's block-sparse products, D and F multiples of 128).

    Raises:
        ImportError: MegaBlocks is not installed.
        ValueError: a capacity factor, fewer than 128 columns (E F), or sparse products where they cannot run.
    """

    def __init__(
        self,
        router: Router,
        dim: int,
        hidden_dim: int,
        *,
        init_std: float = 0.02,
        output_std: float | None = None,
        capacity_factor: float | None = None,
        mlp_impl: str = "grouped",
    ) -> None:
        super().__init__()
        load()
        # here, as importing MegaBlocks is for those who have it
        from models.megablocks.dropless import stock_dmoe

        factor = router.capacity_factor or capacity_factor
        if factor is not None:
            raise ValueError(f"dMoE drops no token: the capacity factor must be null, got {factor}")
        if router.num_experts * hidden_dim < BLOCK:
            raise ValueError(
                f"dMoE needs at least {BLOCK} columns in all, got {router.num_experts} experts of width {hidden_dim}"
            )
        if mlp_impl == "sparse":
            _check_sparse(dim, hidden_dim)
        output_std = init_std if output_std is None else output_std
        self.dmoe = stock_dmoe(router, dim, hidden_dim, mlp_impl, init_std, output_std)
        self.register_state_dict_post_hook(_rename_to_ours)
        self.register_load_state_dict_pre_hook(_rename_to_stock)

    @property
    def router(self) -> Router:
        """Ours."""
        return self.dmoe.router  # pyright: ignore[reportReturnType]

    def forward(
        self, x_TD: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"], num_sequences: int = 1
    ) -> tuple[Float[Tensor, "T D"], MoEOutput]:
        """Hidden states (T, D) and token ids (T,) to the layer's output (T, D) and what it tells, as MoELayer."""
        # dMoE.forward in its two steps: it would neither pass token ids on nor keep what the losses need
        logits_TE = self.router.logits(x_TD)
        routing = self.router.route(logits_TE, token_ids)
        out_TD = self._compute(x_TD, fill_empty(routing))
        load = count_tokens(routing.expert_indices, self.router.num_experts)
        losses = self.router.losses(logits_TE, routing, num_sequences) if self.training else {}
        return out_TD, MoEOutput(routing, load, losses, all_here(routing))

    def _compute(self, x_TD: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "T D"]:
        """MegaBlocks' experts in one precision: autocast reaches neither its grouped products nor its kernels."""
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        weights = {name: weight.to(dtype) for name, weight in self.dmoe.experts.named_parameters()}
        inputs = (x_TD.to(dtype), routing.scores, routing.expert_weights.to(dtype), routing.expert_indices)
        with torch.autocast(device, enabled=False):
            return functional_call(self.dmoe.experts, weights, inputs)


def fill_empty(routing: Routing) -> Routing:
    """Ours: MegaBlocks knows no empty choice, so an expert with weight 0 stands for it: computed, and adds nothing.

    Column k's empty choices go to expert k mod E, or one expert would get them all.
    """
    num_choices, num_experts = routing.expert_indices.shape[1], routing.scores.shape[1]
    chosen = routing.expert_indices >= 0
    instead = torch.arange(num_choices, device=chosen.device) % num_experts
    return Routing(
        routing.scores,
        torch.where(chosen, routing.expert_weights, 0),
        torch.where(chosen, routing.expert_indices, instead),
    )


def all_here(routing: Routing) -> OneDevicePlan:
    """The plan of a layer whose experts are all on this device."""
    device = routing.expert_indices.device
    rows = torch.full((1,), routing.expert_indices.numel(), device=device)
    return OneDevicePlan(rows, torch.zeros_like(rows))


def _check_sparse(dim: int, hidden_dim: int) -> None:
    if not triton_runs():
        raise ValueError("mlp_impl=sparse is made of Triton kernels, which need a CUDA device; use mlp_impl=grouped")
    for size in (dim, hidden_dim):
        if size % BLOCK:
            raise ValueError(f"mlp_impl=sparse needs widths of a multiple of {BLOCK}, got {size}; use mlp_impl=grouped")


def _rename_to_ours(layer: StockDMoE, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    num_experts = layer.router.num_experts
    for name in [name for name in state if name.startswith(f"{prefix}dmoe.router.")]:
        state[name.replace("dmoe.router.", "router.")] = state.pop(name)
    w1, w2 = (state.pop(f"{prefix}dmoe.experts.mlp.{name}").unflatten(0, (num_experts, -1)) for name in ("w1", "w2"))
    state[f"{prefix}experts.w1"], state[f"{prefix}experts.w2"] = w1.transpose(1, 2), w2


def _rename_to_stock(layer: StockDMoE, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}router.")]:
        state[f"{prefix}dmoe.{name.removeprefix(prefix)}"] = state.pop(name)
    layouts = {"w1": lambda w: w.transpose(1, 2).flatten(0, 1), "w2": lambda w: w.flatten(0, 1)}
    for name, to_stock in layouts.items():
        if (ours := f"{prefix}experts.{name}") in state:
            state[f"{prefix}dmoe.experts.mlp.{name}"] = to_stock(state.pop(ours))
