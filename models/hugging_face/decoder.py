"""A Hugging Face language model as the decoder that moelab trains, profiles and evaluates.

It stands where `models.transformer.Transformer` stands: the same calls, the same reports of the MoE layers. Decoder
layers below `frozen` are a trunk that is never trained: it is no part of the state dict, and what it computes is kept
on disk, sequence by sequence, so that a run pays for the layers it trains alone.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.hugging_face.block import decoder_layers, moe_blocks
from models.hugging_face.trunk import Trunk, some_layers
from models.transformer import DecoderOutput
from routers.base import Router


class HuggingFaceDecoder(nn.Module):
    """A causal language model whose MoE layers are ours.

    Args:
        model: of Llama's kin: layers in `model.model.layers`, an output embedding in `model.lm_head`.
        sequence_length: longest input S.
        frozen: decoder layers, from the first, that are never trained; 0 = all are trained as they say.
        cache: what the trunk computes is kept there; None = it is computed each time.

    Raises:
        ValueError: a model without MoE layers of ours, with one below `frozen`, or a longer input than its positions.
    """

    def __init__(self, model: Any, sequence_length: int, *, frozen: int = 0, cache: Path | None = None) -> None:
        super().__init__()
        blocks = moe_blocks(model)
        if not blocks:
            raise ValueError(f"{type(model).__name__} has no MoE layer of ours: replace or upcycle its layers first")
        limit = model.config.max_position_embeddings
        if sequence_length > limit:
            raise ValueError(f"sequences of {sequence_length} tokens, the model has {limit} positions")
        layers = list(decoder_layers(model))
        if any(moe_blocks(layer) for layer in layers[:frozen]) or not 0 <= frozen < len(layers):
            raise ValueError(f"frozen = {frozen}: of {len(layers)} layers those below the first MoE layer can be")
        self.sequence_length, self.num_layers = sequence_length, len(layers)
        self.num_experts, self.num_moe_layers = blocks[0].layer.router.num_experts, len(blocks)
        # in a list, it is no module of this one: neither saved with it nor told to gradients
        self._trunk = [Trunk(model.model, frozen, cache)] if frozen else []
        self.model = _without_first(model, frozen)
        # what is not trained is read from the model's own files each time: checkpoints need not hold it
        self.register_state_dict_post_hook(_drop_untrained)
        self.register_load_state_dict_post_hook(_miss_no_untrained)

    def forward(self, token_ids: Int[Tensor, "B S"]) -> DecoderOutput:
        """Token ids (B, S), S at most `sequence_length`, to next-token logits and the MoE layers' reports."""
        if (length := token_ids.shape[1]) > self.sequence_length:
            raise ValueError(f"sequence of {length} tokens, the model takes at most {self.sequence_length}")
        x = self._decode(token_ids, torch.arange(length, device=token_ids.device).expand_as(token_ids))
        told = [block.told for block in moe_blocks(self.model)]
        return DecoderOutput(self.logits(x), [one for one in told if one is not None])

    def hidden(
        self, token_ids: Int[Tensor, "B S"], positions: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"]
    ) -> Float[Tensor, "B S D"]:
        """As `Transformer.hidden`: rows that are no plain sequences.

        Raises:
            ValueError: a position beyond the longest sequence.
        """
        if (longest := int(positions.max()) + 1) > self.sequence_length:
            raise ValueError(f"sequence of {longest} tokens, the model takes at most {self.sequence_length}")
        return self._decode(token_ids, positions, attend)

    def logits(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Next-token logits of `hidden` states."""
        return self.model.lm_head(x)

    def _decode(
        self, token_ids: Int[Tensor, "B S"], positions: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        for block in moe_blocks(self.model):
            block.token_ids = token_ids.flatten()
        where = {"position_ids": positions, "attention_mask": None if attend is None else attend[:, None]}
        embed = self.model.get_input_embeddings()
        x = self._trunk[0](token_ids, positions, attend) if self._trunk else embed(token_ids)
        # nothing is generated here: a cache of keys would only cost memory
        return self.model.model(inputs_embeds=x, use_cache=False, **where).last_hidden_state

    @property
    def tokens(self) -> nn.Module:
        """The input embedding."""
        return self.model.get_input_embeddings()

    @property
    def routers(self) -> list[Router]:
        """The MoE layers' routers, first layer first."""
        return [block.layer.router for block in moe_blocks(self.model)]

    @property
    def shape(self) -> dict[str, int]:
        """The sizes that a checkpoint must agree with."""
        config = self.model.config
        return {
            "vocab_size": config.vocab_size,
            "dim": config.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": config.num_attention_heads,
            "num_moe_layers": self.num_moe_layers,
            "num_experts": self.num_experts,
            "expert_dim": moe_blocks(self.model)[0].layer.experts.w2.shape[1],
            "sequence_length": self.sequence_length,
        }


def _untrained(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _drop_untrained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _untrained(module):
        state.pop(prefix + name, None)


def _miss_no_untrained(module: nn.Module, incompatible: Any) -> None:
    # names in there bear the prefix of whatever this is a part of
    ends = tuple(_untrained(module))
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not name.endswith(ends)]


def _without_first(model: Any, frozen: int) -> Any:
    """The model without its first layers, its parameters shared."""
    if not frozen:
        return model
    inner = some_layers(model.model, slice(frozen, None), model.model.norm)
    with torch.device("meta"):
        rest = type(model)(inner.config)
    rest.model, rest.lm_head = inner, model.lm_head
    return rest
