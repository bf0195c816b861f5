"""A GPT decoder in plain torch whose MLP is an MoE layer in every `moe_every`-th block.

Pre-norm blocks with learned positions and tied embeddings, as GPT-2 and GPT-3 (Radford et al., 2019; Brown et al.,
2020, arXiv 2005.14165). With moe_every = 2 the second, fourth, ... blocks are MoE, as in Cong et al. (2024, arXiv
2404.16914).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.dispatch import Dispatcher
from models.moe import ExpertsFactory, MoELayer, MoEOutput, RouterFactory
from routers.base import Router


class DecoderOutput(NamedTuple):
    """Next-token logits (B, S, V) and what each MoE layer told, first layer first."""

    logits: Float[Tensor, "B S V"]
    moe: list[MoEOutput]


class Attention(nn.Module):
    """Causal multi-head self-attention through torch's fused kernel."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B S D"], attend: Bool[Tensor, "B S S"] | None = None) -> Float[Tensor, "B S D"]:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if attend is None else attend[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=attend is None)
        return self.out(attended.transpose(1, 2).reshape(batch, length, dim))


class DenseMlp(nn.Module):
    """The two-layer GELU MLP of a block without experts."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a residual; `mlp` is a DenseMlp or an MoE layer of any make."""

    def __init__(self, dim: int, num_heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = Attention(dim, num_heads), mlp

    def forward(
        self, x: Float[Tensor, "B S D"], token_ids: Int[Tensor, " T"], attend: Bool[Tensor, "B S S"] | None = None
    ) -> tuple[Float[Tensor, "B S D"], MoEOutput | None]:
        x = x + self.attention(self.attention_norm(x), attend)
        normed_TD = self.mlp_norm(x).flatten(0, 1)
        if isinstance(self.mlp, DenseMlp):
            out_TD, told = self.mlp(normed_TD), None
        else:
            out_TD, told = self.mlp(normed_TD, token_ids, x.shape[0])
        return x + out_TD.view_as(x), told


class Transformer(nn.Module):
    """The decoder.

    Args:
        vocab_size: V.
        sequence_length: longest input S.
        dim: model width D.
        num_layers: blocks; must be divisible by `moe_every`.
        num_heads: attention heads; must divide `dim`.
        num_experts: E of every MoE layer.
        expert_dim: expert width F, and the width of the dense blocks' MLP.
        router: factory called with (dim, num_experts, MoE layer number).
        experts: factory called with (num_experts, dim, expert_dim, init_std=, output_std=).
        dispatcher: shared by the layers, holds no parameters.
        moe_every: an MoE layer in every n-th block; 1 = everywhere.
        capacity_factor: None = dropless, see MoELayer.
        init_std: standard deviation of the normal initialisation; residual outputs get init_std / sqrt(2 num_layers).
        moe_layer: another make of MoE layer, called with (router, dim, expert_dim, init_std=, output_std=,
            capacity_factor=) in place of MoELayer; `experts`, `dispatcher` and `shared_dim` are then not used.
        shared_dim: width of an expert in every MoE layer that sees all tokens; None = there is none.

    Raises:
        ValueError: sizes that do not divide, naming both.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        sequence_length: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_experts: int,
        expert_dim: int,
        router: RouterFactory,
        experts: ExpertsFactory,
        dispatcher: Dispatcher,
        moe_every: int = 2,
        capacity_factor: float | None = None,
        init_std: float = 0.02,
        moe_layer: Callable[..., nn.Module] | None = None,
        shared_dim: int | None = None,
    ) -> None:
        super().__init__()
        if moe_every < 1 or num_layers < 1 or num_layers % moe_every:
            raise ValueError(f"num_layers = {num_layers} must be a positive multiple of moe_every = {moe_every}")
        if dim % num_heads:
            raise ValueError(f"dim = {dim} is not divisible by num_heads = {num_heads}")
        self.sequence_length, self.num_experts = sequence_length, num_experts
        self.num_heads, self.expert_dim = num_heads, expert_dim
        self.num_moe_layers = num_layers // moe_every
        output_std = init_std / math.sqrt(2 * num_layers)
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(sequence_length, dim)

        def mlp(block: int) -> nn.Module:
            if (block + 1) % moe_every:
                return DenseMlp(dim, expert_dim)
            gate = router(dim, num_experts, block // moe_every)
            spread = {"init_std": init_std, "output_std": output_std}
            if moe_layer is not None:
                return moe_layer(gate, dim, expert_dim, capacity_factor=capacity_factor, **spread)
            local = experts(num_experts, dim, expert_dim, **spread)
            shared = None if shared_dim is None else DenseMlp(dim, shared_dim)
            return MoELayer(gate, local, dispatcher, capacity_factor, shared)

        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp(block)) for block in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self._initialise(init_std, output_std)

    def _initialise(self, init_std: float, output_std: float) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                into_residual = name.endswith(("attention.out", "mlp.down"))
                nn.init.normal_(module.weight, std=output_std if into_residual else init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, token_ids: Int[Tensor, "B S"]) -> DecoderOutput:
        """Token ids (B, S), S at most `sequence_length`, to next-token logits and the MoE layers' reports."""
        length = token_ids.shape[1]
        if length > self.sequence_length:
            raise ValueError(f"sequence of {length} tokens, the model takes at most {self.sequence_length}")
        x, told = self._decode(self.tokens(token_ids) + self.positions.weight[:length], token_ids)
        return DecoderOutput(self.logits(x), told)

    def hidden(
        self, token_ids: Int[Tensor, "B S"], positions: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"]
    ) -> Float[Tensor, "B S D"]:
        """What `logits` takes, for rows that are no plain sequences, such as one context with several continuations.

        Args:
            token_ids: (B, S); S may exceed `sequence_length`, positions may not.
            positions: (B, S) each token's place in its own sequence, from 0.
            attend: (B, S, S) whether token i sees token j; every token must see one.

        Raises:
            ValueError: a position beyond the longest sequence.
        """
        if (longest := int(positions.max()) + 1) > self.sequence_length:
            raise ValueError(f"sequence of {longest} tokens, the model takes at most {self.sequence_length}")
        return self._decode(self.tokens(token_ids) + self.positions(positions), token_ids, attend)[0]

    def logits(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Next-token logits of `hidden` states, through the tied output embedding."""
        return F.linear(x, self.tokens.weight)

    def _decode(
        self, x: Float[Tensor, "B S D"], token_ids: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"] | None = None
    ) -> tuple[Float[Tensor, "B S D"], list[MoEOutput]]:
        told = []
        for block in self.blocks:
            x, layer_told = block(x, token_ids.flatten(), attend)
            if layer_told is not None:
                told.append(layer_told)
        return self.norm(x), told

    @property
    def routers(self) -> list[Router]:
        """The MoE layers' routers, first layer first."""
        return [module for module in self.modules() if isinstance(module, Router)]

    @property
    def shape(self) -> dict[str, int]:
        """The sizes that a checkpoint must agree with."""
        vocab_size, dim = self.tokens.weight.shape
        return {
            "vocab_size": vocab_size,
            "dim": dim,
            "num_layers": len(self.blocks),
            "num_heads": self.num_heads,
            "num_moe_layers": self.num_moe_layers,
            "num_experts": self.num_experts,
            "expert_dim": self.expert_dim,
            "sequence_length": self.sequence_length,
        }
