"""How a trained model routes given text: every token's experts in every layer, for profiles and exact volumes."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from models.callbacks.probe import unobserved
from models.language_model import LanguageModel
from traces.load import TraceSource
from traces.routing import RoutingTrace


def route_text(module: LanguageModel, batches: Iterable[Int[Tensor, "B length"]]) -> Integer[np.ndarray, "S L T K"]:
    """Route batches of token ids through a model as it is, and leave no trace in it.

    Args:
        module: built, on the device that is to compute.
        batches: S batches (B, length) of one shape; T = B * length.

    Returns:
        (S, L, T, K) expert of each choice, -1 where a token has fewer than K.

    Raises:
        ValueError: there is no batch, or batches differ in shape.
    """
    with torch.no_grad(), unobserved(module):
        chosen = [_route(module, tokens) for tokens in batches]
    shapes = sorted({one.shape for one in chosen})
    if len(shapes) != 1:
        raise ValueError(f"routing text needs batches of one shape, got choices (L, T, K) of {shapes or 'no batch'}")
    return np.stack(chosen)


def routing_trace(
    module: LanguageModel,
    batches: Iterable[Int[Tensor, "B length"]],
    source: TraceSource,
    num_devices: int = 1,
) -> RoutingTrace:
    """The routing of batches as a trace, one step a batch.

    Each batch's sequences are dealt to the devices in equal runs: the first B / num_devices start on device 0.

    Raises:
        ValueError: as `route_text`, or B is not divisible by `num_devices`.
    """
    batches = list(batches)
    num_sequences, length = batches[0].shape if batches else (0, 0)
    if num_devices < 1 or num_sequences % num_devices:
        raise ValueError(f"{num_sequences} sequences a batch cannot be dealt evenly to {num_devices} devices")
    expert_indices = route_text(module, batches)
    device_T = np.repeat(np.arange(num_devices), num_sequences // num_devices * length)
    return RoutingTrace(np.arange(len(batches)), expert_indices, device_T, module.decoder.num_experts, source)


def _route(module: LanguageModel, tokens: Int[Tensor, "B length"]) -> Integer[np.ndarray, "L T K"]:
    told = module(tokens.to(module.device)).moe
    # int16 holds any expert's number; a profile has millions of choices
    return torch.stack([layer.routing.expert_indices for layer in told]).short().cpu().numpy()
