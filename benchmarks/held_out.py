"""Held-out loss in bits a byte, which models of different tokenizers can be compared by."""

import math

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from models.callbacks.probe import unobserved
from models.data import TextDataModule
from models.language_model import LanguageModel


def bits_per_byte(module: LanguageModel, data: TextDataModule) -> dict[str, float]:
    """Cross-entropy of held-out text over its length in bytes, by domain and over "all".

    The predicted tokens count, and their bytes: a sequence's first token is only context.
    """
    length_V = torch.from_numpy(token_bytes(data.tokenizer))
    nats, num_bytes = (np.zeros(len(data.domains)) for _ in range(2))
    with torch.no_grad(), unobserved(module):
        for batch in data.val_dataloader():
            tokens = batch["tokens"]
            logits = module(tokens[:, :-1].to(module.device)).logits.float().cpu()
            losses = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)
            np.add.at(nats, batch["domain"].numpy(), losses.double().numpy())
            np.add.at(num_bytes, batch["domain"].numpy(), length_V[tokens[:, 1:]].sum(1).numpy())
    bits = nats / math.log(2)
    by_domain = dict(zip(data.domains, (bits / num_bytes).tolist(), strict=True))
    return {**by_domain, "all": float(bits.sum() / num_bytes.sum())}


def token_bytes(tokenizer: object) -> np.ndarray:
    """Bytes (V,) that each token of a byte-level tokenizer stands for: one character of its spelling is one byte."""
    vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for spelling, number in vocabulary.items():
        lengths[number] = len(spelling)
    return lengths
