"""Our language models inside lm-evaluation-harness, the answer choices of an item sharing their context's computation.

A row holds a context and, side by side, all its continuations. Each continuation's tokens are placed right after the
context and see the context and their own predecessors only (a tree attention mask), so a row gives what one row a
continuation would, to rounding. A batch holds rows of one length: no padding enters a router. A router whose choice for
a token depends on the batch still sees other rows, and other continuations, than in training.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.paired import TaskScore
from models.corpus import SEPARATOR
from models.transformer import Transformer

# before the harness imports Hugging Face's libraries: the items are local files
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager
except ImportError:
    raise ImportError("the downstream tasks need lm-eval: pip install -e .[evaluate]") from None

TOKENS_PER_BATCH = 4096


class Row(NamedTuple):
    """A context with its continuations as token ids."""

    context: list[int]
    continuations: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens of the row; a continuation's last one is only predicted."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)


class Batch(NamedTuple):
    """Rows of one length side by side.

    Attributes:
        token_ids, position, part: (B, S); part 0 is the context, part j the j-th continuation.
        source: (N,) the flat place in (B, S) from which each continuation token is predicted.
        target: (N,) that token.
        owner: (N,) its continuation, numbered through the batch.
    """

    token_ids: Tensor
    position: Tensor
    part: Tensor
    source: Tensor
    target: Tensor
    owner: Tensor


class HarnessModel(LM):
    """A decoder and its tokenizer as the harness's model, for multiple choice.

    Context and continuation are told apart as the harness does it for causal models: blanks at a context's end move to
    the continuation, context + continuation are encoded as one text, and what lies beyond the context's own tokens is
    scored. An empty context is the separator of documents. Nothing is put before a context that has text.

    Args:
        decoder: on its device, in evaluation mode.
        tokenizer: path of its tokenizer's JSON file.

    Raises:
        ValueError: a tokenizer with another number of tokens than the decoder.
    """

    def __init__(self, decoder: Transformer, tokenizer: Path) -> None:
        super().__init__()
        self._decoder, self._tokenizer = decoder, Tokenizer.from_file(str(tokenizer))
        sizes = decoder.shape["vocab_size"], self._tokenizer.get_vocab_size()
        if sizes[0] != sizes[1]:
            raise ValueError(f"the model has {sizes[0]} tokens, the tokenizer {tokenizer} has {sizes[1]}")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Sum of log-probabilities in nats of each continuation, and whether greedy decoding would give it."""
        rows = self._rows([request.arguments for request in requests])
        found: list[list[tuple[float, bool]]] = [[] for _ in rows]
        for numbers in batches(rows):
            scores = iter(self._score([rows[number] for number in numbers]))
            for number in numbers:
                found[number] = [next(scores) for _ in rows[number].continuations]
        return [score for row in found for score in row]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError("whole texts are measured by benchmarks.held_out, not by the harness")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("moelab's models answer by choosing a continuation, they do not generate text")

    def _rows(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """A row for each run of pairs with the same context.

        The tokenizer never merges over a blank, so the context's last word stands for all of it before a continuation.
        """
        groups = [(context, [text for _, text in group]) for context, group in groupby(pairs, key=lambda pair: pair[0])]
        heads = self._encode([context.rstrip() for context, _ in groups])
        endings = [_ending(context) for context, _ in groups]
        lengths = [len(tokens) for tokens in self._encode([ending.rstrip() for ending in endings])]
        wholes = self._encode(
            [ending + text for ending, (_, texts) in zip(endings, groups, strict=True) for text in texts]
        )
        separator, whole = self._tokenizer.encode(SEPARATOR).ids, iter(wholes)
        rows = [
            Row(head or separator, [next(whole)[length:] for _ in texts])
            for (_, texts), head, length in zip(groups, heads, lengths, strict=True)
        ]
        for row, (context, texts) in zip(rows, groups, strict=True):
            if not all(row.continuations):
                raise ValueError(f"a continuation has no token of its own after {context!r}: {texts}")
        return rows

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    @torch.inference_mode()
    def _score(self, rows: list[Row]) -> Iterator[tuple[float, bool]]:
        batch = pack(rows, self._decoder.tokens.weight.device)
        hidden_BSD = self._decoder.hidden(batch.token_ids, batch.position, tree_mask(batch.part))
        # logits only where something is predicted from: they are half of a small model's work
        places, of_target = batch.source.unique(return_inverse=True)
        logits = self._decoder.logits(hidden_BSD.flatten(0, 1)[places]).float()
        chosen = logits[of_target, batch.target]
        log_prob = chosen - logits.logsumexp(-1)[of_target]
        told = torch.stack([log_prob.double(), (chosen < logits.amax(-1)[of_target]).double()], dim=1)
        sums = told.new_zeros(int(batch.owner[-1]) + 1, 2)
        return ((total, not wrong) for total, wrong in sums.index_add(0, batch.owner, told).tolist())


def _ending(context: str) -> str:
    """The last word of a context with the blank before it and those after it."""
    bare = context.rstrip()
    return context[max(0, len(bare) - len(re.split(r"\s", bare)[-1]) - 1) :]


def batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Numbers of the rows, in groups of one length and at most about `TOKENS_PER_BATCH` tokens."""
    order = sorted(range(len(rows)), key=lambda number: rows[number].length)
    for length, group in groupby(order, key=lambda number: rows[number].length):
        numbers, size = list(group), max(1, TOKENS_PER_BATCH // length)
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))


def pack(rows: Sequence[Row], device: torch.device) -> Batch:
    """Lay rows of one length side by side."""
    columns: list[list] = [[], [], [], [], [], []]
    ids, position, part, source, target, owner = columns
    for context, continuations in rows:
        first, end = len(ids), len(context)
        ids += context
        position += range(end)
        part += [0] * end
        for number, tokens in enumerate(continuations, 1):
            inner = len(tokens) - 1
            source += [first + end - 1, *range(len(ids), len(ids) + inner)]
            ids += tokens[:-1]
            position += range(end, end + inner)
            part += [number] * inner
            target += tokens
            owner += [owner[-1] + 1 if owner else 0] * len(tokens)
    tensors = [torch.tensor(column, device=device) for column in columns]
    return Batch(*(tensor.view(len(rows), -1) for tensor in tensors[:3]), *tensors[3:])


def tree_mask(part: Tensor) -> Bool[Tensor, "B S S"]:
    """(B, S) parts to who sees whom: the context is seen by all after it, a continuation by itself alone."""
    length = part.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=part.device).tril()
    return before & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))


def score_tasks(model: LM, folder: Path, names: Sequence[str], items: int) -> dict[str, TaskScore]:
    """Run the harness on the first `items` items of the tasks whose YAML files lie in `folder`."""
    with redirect_stderr(io.StringIO()):  # its progress bars
        tasks = TaskManager(include_path=str(folder), include_defaults=False).load(list(names))
        results = evaluate(model, tasks, limit=items, bootstrap_iters=0)
    assert results is not None, "there is one process"
    assert "samples" in results, "samples are logged"
    return {name: _task_score(results["samples"][name]) for name in names}


def _task_score(samples: Sequence[Mapping[str, Any]]) -> TaskScore:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    shown = json.dumps([sample["doc"] for sample in samples], sort_keys=True)
    return TaskScore(
        correct=np.array([sample["acc"] == 1.0 for sample in samples]),
        chance=float(np.mean([1 / len(sample["doc"]["choices"]) for sample in samples])),
        fingerprint=hashlib.sha256(shown.encode()).hexdigest()[:12],
    )
