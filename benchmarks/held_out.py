"""Bits per byte of the held-out text: a loss that does not depend on the tokenizer."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from tokenizers import Tokenizer
from torch.nn import functional as F

from models.corpus import SEPARATOR
from models.data import HeldOutLoader, TextDataModule
from models.language_model import LanguageModel
from models.stream import Blocks


@torch.inference_mode()
def bits_per_byte(module: LanguageModel, data: TextDataModule) -> dict[str, float]:
    """Bits a model needs for a byte of held-out text, by domain and, as "all", over all of them.

    As many windows of each domain as the smallest has, in batches that mix the domains as training does. Bytes are
    those of the predicted tokens; the separator of documents costs bits and has no bytes.
    """
    blocks = Blocks(data.corpus.held_out, data.sequence_length)
    loader = HeldOutLoader(blocks, blocks.balanced(int(blocks.counts.min())), data.sequences_per_batch)
    bytes_of_token = token_bytes(data.tokenizer)
    bits, size = np.zeros(len(data.domains)), np.zeros(len(data.domains))
    training = module.training
    module.eval()
    for batch in loader:
        token_ids = batch["tokens"].to(module.device)
        inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
        nats = F.cross_entropy(module(inputs).logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        domain = batch["domain"].numpy()
        np.add.at(bits, domain, nats.view(targets.shape).double().sum(1).cpu().numpy() / math.log(2))
        np.add.at(size, domain, bytes_of_token[targets.cpu().numpy()].sum(1))
    module.train(training)
    by_domain = {name: float(value) for name, value in zip(data.domains, bits / size, strict=True)}
    return by_domain | {"all": float(bits.sum() / size.sum())}


def token_bytes(tokenizer: Path) -> Int64[np.ndarray, " V"]:
    """(V,) bytes of text that each token of a byte-level tokenizer stands for; none for the separator."""
    loaded = Tokenizer.from_file(str(tokenizer))
    # a byte-level token is written with one letter a byte
    lengths = np.array([len(loaded.id_to_token(number) or "") for number in range(loaded.get_vocab_size())])
    lengths[loaded.token_to_id(SEPARATOR)] = 0
    return lengths
