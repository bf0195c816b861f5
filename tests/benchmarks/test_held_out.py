"""Bits per byte against models and texts whose answer is known."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from benchmarks.cell import ROOT, compose
from benchmarks.held_out import bits_per_byte, token_bytes
from benchmarks.train import build_data, build_module
from models.data import TextDataModule
from models.language_model import LanguageModel
from models.stream import Blocks

TOKENIZER = ROOT / "data" / "tokenizer" / "bpe_2k.json"
DOMAINS = ["dictionary", "facts"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, TextDataModule]:
    """An untrained model and the text of two domains."""
    outputs = tmp_path_factory.mktemp("outputs")
    config = compose("train", ["setting=micro8", "scale=smoke", f"data.domains={DOMAINS}", f"outputs={outputs}"])
    data = build_data(config)
    torch.manual_seed(0)
    module = build_module(config, data)
    module.configure_model()
    return module, data


def test_bytes_of_tokens_add_up_to_the_text() -> None:
    text = "Señor: 3 ÷ 4 — naïve\n\ttabs, «quotes» and 日本"
    ids = Tokenizer.from_file(str(TOKENIZER)).encode(text + "<|endoftext|>").ids
    assert token_bytes(Path(TOKENIZER))[ids].sum() == len(text.encode())


def test_equals_a_plain_loop(built: tuple[LanguageModel, TextDataModule]) -> None:
    module, data = built
    found = bits_per_byte(module, data)
    blocks, sizes = Blocks(data.corpus.held_out, data.sequence_length), token_bytes(data.tokenizer)
    bits, size = dict.fromkeys(DOMAINS, 0.0), dict.fromkeys(DOMAINS, 0)
    batch = blocks.batch(blocks.balanced(int(blocks.counts.min())))
    for tokens, number in zip(batch["tokens"], batch["domain"].tolist(), strict=True):
        with torch.no_grad():
            loss = F.cross_entropy(module(tokens[None, :-1]).logits[0], tokens[1:], reduction="sum")
        bits[DOMAINS[number]] += float(loss) / math.log(2)
        size[DOMAINS[number]] += int(sizes[tokens[1:]].sum())
    expected = {name: bits[name] / size[name] for name in DOMAINS}
    assert found == pytest.approx(expected | {"all": sum(bits.values()) / sum(size.values())}, rel=1e-4)


def test_a_model_that_knows_nothing_pays_eleven_bits_a_token(built: tuple[LanguageModel, TextDataModule]) -> None:
    module, data = built
    weights = module.decoder.tokens.weight.detach().clone()
    with torch.no_grad():
        module.decoder.tokens.weight.zero_()
    found = bits_per_byte(module, data)
    with torch.no_grad():
        module.decoder.tokens.weight.copy_(weights)
    sizes = token_bytes(data.tokenizer)
    for name in DOMAINS:
        per_token = sizes[data.corpus.held_out[name]].mean()
        # log2 of 2,048 tokens; not every window of the larger domain is read
        assert found[name] == pytest.approx(11 / per_token, rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_mode_as_it_was(built: tuple[LanguageModel, TextDataModule], training: bool) -> None:
    module, data = built
    bits_per_byte(module.train(training), data)
    assert module.training == module.decoder.training == training
