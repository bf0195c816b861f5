"""Pretrained dense models with experts of their own neurons in their last layers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.corpus import load_corpus
from models.dispatch import Dispatcher
from models.hugging_face.block import decoder_layers, moe_blocks
from models.hugging_face.decoder import HuggingFaceDecoder
from models.hugging_face.split import random_split, shared_split
from models.hugging_face.upcycle import importance, upcycle
from models.moe import ExpertsFactory, RouterFactory

CALIBRATION_TOKENS = 256
"""Of each domain's training text, from which the importance of neurons is taken."""


def upcycled(
    *,
    path: str | Path,
    text: str | Path,
    cache: str | Path,
    sequence_length: int,
    vocab_size: int,
    last_layers: int,
    num_experts: int,
    shared_neurons: int,
    scale: float,
    split_seed: int,
    router: RouterFactory,
    experts: ExpertsFactory,
    dispatcher: Dispatcher,
) -> HuggingFaceDecoder:
    """A model from disk whose last layers are MoE layers: they alone are trained, and of them only router and experts.

    Args:
        path: folder that `transformers` loads, such as `make pretrained` leaves, with a tokenizer.json.
        text: a corpus, whose training text says which neurons are important.
        cache: folder for tokens and for what the layers below compute.
        vocab_size: V that the model must have.
        last_layers: number of decoder layers to upcycle, counted from the last.
        num_experts: E of each of them.
        shared_neurons: the most important ones, for all tokens; 0 = all are dealt to experts at random.
        scale: of the routed experts' sum.
        split_seed: of the random deal.

    Raises:
        FileNotFoundError: no model there.
        ValueError: another vocabulary, or neurons that cannot be dealt evenly.
    """
    path, cache = Path(path), Path(cache)
    model = load_dense(path, vocab_size)
    num_layers = len(list(decoder_layers(model)))
    if not 1 <= last_layers < num_layers:
        raise ValueError(f"last_layers = {last_layers}: 1 to {num_layers - 1} of {num_layers} layers can be upcycled")
    layers = range(num_layers - last_layers, num_layers)
    rng = np.random.default_rng(split_seed)
    if shared_neurons:
        of_layer = importance(model, layers, calibration(Path(text), path / "tokenizer.json", cache))
        splits = [shared_split(of_layer[layer].numpy(), shared_neurons, num_experts, rng) for layer in layers]
    else:
        splits = [random_split(model.config.intermediate_size, num_experts, rng) for _ in layers]
    model.requires_grad_(False)
    upcycle(model, layers, splits, router=router, experts=experts, dispatcher=dispatcher, scale=scale)
    for block in moe_blocks(model):
        block.requires_grad_(True)
    return HuggingFaceDecoder(model, sequence_length, frozen=layers[0], cache=cache / "trunk")


def load_dense(path: Path, vocab_size: int) -> Any:
    """A causal language model in evaluation mode, float32; nothing is fetched and no code of the folder is run.

    Raises:
        FileNotFoundError: no model there.
        ValueError: another vocabulary.
        ImportError: the extra [hf] is not installed.
    """
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"no pretrained model at {path}: run `make pretrained`, or set model.path")
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ImportError("pretrained models need transformers: pip install -e .[hf]") from None
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
    if model.config.vocab_size != vocab_size:
        raise ValueError(f"{path} has {model.config.vocab_size} tokens, model.vocab_size is {vocab_size}")
    return model


def calibration(text: Path, tokenizer: Path, cache: Path) -> Iterator[Tensor]:
    """The first tokens of each domain's training text, (1, CALIBRATION_TOKENS) each."""
    for tokens in load_corpus(text, tokenizer, cache).train.values():
        yield torch.from_numpy(tokens[None, :CALIBRATION_TOKENS].astype(np.int64))
