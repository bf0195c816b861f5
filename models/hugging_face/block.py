"""Our MoE layer where a Hugging Face decoder layer has its MLP."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.moe import MoELayer, MoEOutput


class MoEBlock(nn.Module):
    """Takes and gives hidden states (B, S, D), as Hugging Face's decoder layers call their `mlp`.

    Args:
        layer: routes, dispatches, computes and combines.

    Attributes:
        token_ids: (T,) of the batch to come, for routers that read them; the decoder sets them before each forward.
            Without them routers are told token 0 everywhere.
        told: what the layer told of the last batch.
    """

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.layer = layer
        self.token_ids: Int[Tensor, " T"] | None = None
        self.told: MoEOutput | None = None

    def forward(self, hidden_states: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        x_TD = hidden_states.flatten(0, 1)
        token_ids = self.token_ids
        if token_ids is None:
            token_ids = torch.zeros(len(x_TD), dtype=torch.long, device=x_TD.device)
        out_TD, self.told = self.layer(x_TD, token_ids, hidden_states.shape[0])
        return out_TD.view_as(hidden_states)


def moe_blocks(model: nn.Module) -> list[MoEBlock]:
    """The MoE blocks of ours in a model, first layer first."""
    return [module for module in model.modules() if isinstance(module, MoEBlock)]


def decoder_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder layers of a causal language model, first to last.

    Raises:
        ValueError: the model keeps them elsewhere than in `model.layers`.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no decoder layers in model.layers, which all of Llama's kin have")
    return iter(layers)
