"""A dense model of Llama's family becomes an MoE model: an MLP's neurons are split into experts.

As LLaMA-MoE does (Zhu et al., 2024, arXiv 2406.16554). No weight changes: with all experts active, each of weight 1,
the model computes what it did. K of E experts whose weights sum to one give smaller outputs than the MLP did; the
layer's `scale` makes up for that (LLaMA-MoE's is 4.0 for 2 of 8).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.dispatch import Dispatcher
from models.gated_experts import GatedExperts
from models.hugging_face.block import MoEBlock, decoder_layers
from models.hugging_face.split import Split
from models.moe import ExpertsFactory, MoELayer, RouterFactory


class SharedMlp(nn.Module):
    """A gated SiLU MLP for all tokens: an MLP's own neurons, or some of them."""

    def __init__(self, mlp: nn.Module, neurons: Int[Tensor, " N"]) -> None:
        super().__init__()
        gate, up, down = projections(mlp)
        self.gate_up = nn.Parameter(torch.cat([gate[neurons], up[neurons]]))
        self.down = nn.Parameter(down[:, neurons].clone())

    def forward(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        gate, up = nn.functional.linear(x_TD, self.gate_up).chunk(2, -1)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down)


def projections(mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the gate (N, D), up (N, D) and down (D, N) projections.

    Raises:
        ValueError: another kind of MLP.
    """
    parts = [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if not all(isinstance(part, nn.Linear) and part.bias is None for part in parts):
        raise ValueError(f"{type(mlp).__name__} is no gated MLP without biases, as Llama's is: it cannot be split")
    gate, up, down = (part.weight.detach() for part in parts)  # type: ignore[union-attr]
    return gate, up, down


def upcycle(
    model: nn.Module,
    layers: Sequence[int],
    splits: Iterable[Split],
    *,
    router: RouterFactory,
    experts: ExpertsFactory,
    dispatcher: Dispatcher,
    scale: float = 1.0,
) -> None:
    """Replace the MLPs of some decoder layers, in place.

    Args:
        layers: numbers of the decoder layers, ascending.
        splits: one a layer.
        router: called with (dim, num_experts, MoE layer number).
        experts: must make gated experts.
        scale: of the routed experts' sum.

    Raises:
        ValueError: a layer that there is not, an MLP that cannot be split, experts of another kind.
    """
    found = list(decoder_layers(model))
    if not layers or min(layers) < 0 or max(layers) >= len(found):
        raise ValueError(f"layers {list(layers)} to be split, the model has 0 to {len(found) - 1}")
    for number, (layer, split) in enumerate(zip(layers, splits, strict=True)):
        mlp: nn.Module = found[layer].mlp  # type: ignore[assignment]
        num_experts, width = split.experts.shape
        local = experts(num_experts, projections(mlp)[0].shape[1], width)
        fill(local, mlp, split)
        shared = SharedMlp(mlp, torch.from_numpy(split.shared)) if len(split.shared) else None
        gate = router(projections(mlp)[0].shape[1], num_experts, number)
        found[layer].mlp = MoEBlock(MoELayer(gate, local, dispatcher, shared=shared, scale=scale))


def fill(local: nn.Module, mlp: nn.Module, split: Split) -> None:
    """Give experts the neurons of their split.

    Raises:
        ValueError: experts without a gate.
    """
    if not isinstance(local, GatedExperts):
        raise ValueError(f"experts of a gated MLP are gated: take experts=gated, got {type(local).__name__}")
    gate, up, down = projections(mlp)
    neurons_EF = torch.from_numpy(split.experts)
    local.load_hugging_face(torch.cat([gate[neurons_EF], up[neurons_EF]], dim=1), down.T[neurons_EF].mT)


@torch.no_grad()
def observe_neurons(
    model: nn.Module, layers: Sequence[int], batches: Iterable[Tensor], see: Callable[[int, Tensor], None]
) -> None:
    """Show `see` each layer's neuron activations (T, N), batch by batch of token ids (B, S)."""
    found = list(decoder_layers(model))
    hooks = [
        found[layer].mlp.down_proj.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda _, inputs, layer=layer: see(layer, inputs[0].flatten(0, -2))
        )
        for layer in layers
    ]
    try:
        for token_ids in batches:
            model(token_ids)
    finally:
        for hook in hooks:
            hook.remove()


def importance(model: nn.Module, layers: Sequence[int], batches: Iterable[Tensor]) -> dict[int, Float[Tensor, " N"]]:
    """Mean |activation| over the batches times the norm of a neuron's output weights, by layer."""
    found = list(decoder_layers(model))
    norms = {layer: projections(found[layer].mlp)[2].norm(dim=0) for layer in layers}  # type: ignore[arg-type]
    sums = {layer: torch.zeros_like(norm) for layer, norm in norms.items()}
    tokens = dict.fromkeys(layers, 0)

    def see(layer: int, activation_TN: Tensor) -> None:
        sums[layer] += activation_TN.abs().sum(0)
        tokens[layer] += len(activation_TN)

    observe_neurons(model, layers, batches, see)
    return {layer: sums[layer] / tokens[layer] * norms[layer] for layer in layers}
