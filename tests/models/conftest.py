"""Tiny models, their text, a Lightning Trainer for them, and programs that are started once a rank."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from benchmarks.cluster import ranks
from benchmarks.cluster.ground import Loopback
from models.data import StreamLoader
from models.dispatch import LocalDispatcher
from models.experts import LoopExperts
from models.language_model import LanguageModel
from models.moe import MoELayer
from models.stream import Blocks, TokenStream
from models.transformer import Transformer
from routers.topk import TopK
from traces.load import TraceSource

SEQUENCE_LENGTH, SEQUENCES_PER_BATCH = 8, 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two threads on a busy machine are many times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rank_command() -> Callable[..., list[str]]:
    """The command of each rank of a program in `ranks/`, told a folder and its cases as JSON objects."""

    def command(program: str, folder: Path, cases: Iterable[dict[str, Any]] = ()) -> list[str]:
        path = Path(__file__).parent / "ranks" / program
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, str(path), str(folder), *map(json.dumps, cases)]

    return command


@pytest.fixture(scope="session")
def run_ranks(rank_command) -> Callable[..., None]:
    """Run a program in a folder with so many ranks; RankFailed holds what the rank that failed wrote."""

    def run(
        program: str, num_ranks: int, folder: Path, cases: Iterable[dict[str, Any]] = (), timeout: float = 240.0
    ) -> None:
        ranks.run_ranks(rank_command(program, folder, cases), Loopback(1, num_ranks), folder, timeout=timeout)

    return run


@pytest.fixture
def make_layer() -> Callable[..., MoELayer]:
    """An MoE layer whose weights are large enough to matter."""

    def make(router: Callable = TopK, *, capacity_factor: float | None = None, **options: Any) -> MoELayer:
        torch.manual_seed(0)
        gate = router(8, 4, 0, **({"top_k": 2} | options))
        return MoELayer(gate, LoopExperts(4, 8, 12, init_std=0.5), LocalDispatcher(), capacity_factor)

    return make


@pytest.fixture
def make_transformer() -> Callable[..., Transformer]:
    """Two blocks, four experts, top-2, vocabulary 32; weights drawn from seed 0."""

    def make(**changes: Any) -> Transformer:
        arguments: dict[str, Any] = {
            "vocab_size": 32,
            "sequence_length": SEQUENCE_LENGTH,
            "dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_experts": 4,
            "expert_dim": 16,
            "router": partial(TopK, top_k=2, balance_weight=0.01),
            "experts": LoopExperts,
            "dispatcher": LocalDispatcher(),
            "moe_every": 1,
        }
        torch.manual_seed(0)
        return Transformer(**(arguments | changes))

    return make


@pytest.fixture
def make_module(make_transformer) -> Callable[..., LanguageModel]:
    """The LightningModule around `make_transformer`; `transformer` holds changes of the decoder."""

    def make(transformer: dict[str, Any] | None = None, **changes: Any) -> LanguageModel:
        arguments = {"learning_rate": 0.01, "final_learning_rate": 0.001, "warmup_steps": 2, "total_steps": 12}
        return LanguageModel(partial(make_transformer, **(transformer or {})), **(arguments | changes))

    return make


@pytest.fixture
def stream() -> TokenStream:
    """Batches of two domains whose tokens follow one another by rule."""
    rng = np.random.default_rng(0)
    tokens = {"even": 2 * rng.integers(0, 16, 200), "odd": 2 * rng.integers(0, 16, 200) + 1}
    blocks = Blocks({name: array.astype(np.uint16) for name, array in tokens.items()}, SEQUENCE_LENGTH)
    return TokenStream(blocks, SEQUENCES_PER_BATCH, seed=0)


@pytest.fixture
def source() -> TraceSource:
    """Of a step of one batch."""
    return TraceSource("tiny", "TopK", 0, SEQUENCES_PER_BATCH * SEQUENCE_LENGTH, 2, "none", "0")


class Losses(L.Callback):
    """Keeps every micro-batch's loss, bit by bit."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].item())


@pytest.fixture
def fit(make_module, stream, tmp_path) -> Callable[..., tuple[L.Trainer, list[float]]]:
    """Train on the stream for `steps` optimiser steps and return the trainer and every micro-batch's loss."""

    def fit(
        callbacks: Sequence[L.Callback] = (),
        *,
        steps: int = 12,
        accumulate: int = 1,
        ckpt_path: Path | None = None,
        module: LanguageModel | None = None,
        **options: Any,
    ) -> tuple[L.Trainer, list[float]]:
        losses = Losses()
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            callbacks=[losses, *callbacks],
            default_root_dir=tmp_path,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **({"logger": False, "enable_checkpointing": False} | options),
        )
        # one Lightning epoch, as in benchmarks/train.py
        loader = StreamLoader(stream, 12 * accumulate, {"stream": 0})
        trainer.fit(module or make_module(), loader, ckpt_path=ckpt_path, weights_only=True)
        return trainer, losses.values

    return fit
