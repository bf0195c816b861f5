"""What recording costs: `LoadRecorder` a step, writing included, as a share of a nano training step (target: 1 %)."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from hydra.utils import instantiate

from benchmarks.cell import compose
from models.callbacks.recorder import LoadRecorder
from models.language_model import LanguageModel
from traces.load import TraceSource

TARGET = 0.01
SETTING = ["setting=nano16"]


@pytest.fixture(autouse=True)
def as_users_run(monkeypatch):
    """Without the tests' shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def module() -> LanguageModel:
    """The nano model of conf/setting/nano16.yaml, built, logging nowhere."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    config = compose("train", SETTING)
    parts = {name: instantiate(config[name]) for name in ("router", "experts", "dispatcher")}
    module = LanguageModel(instantiate(config.model, **parts), total_steps=1000, **config.optimizer)
    module.configure_model()
    module.log = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.fixture(scope="module")
def train(module) -> Callable[[], dict[str, Any]]:
    """One optimiser step on 2,048 tokens; returns what callbacks are given."""
    optimizer = module.configure_optimizers()["optimizer"]
    batch = {"tokens": torch.randint(2048, (32, 65)), "domain": torch.zeros(32, dtype=torch.int64)}

    def train() -> dict[str, Any]:
        told = module.training_step(batch, 0)
        optimizer.zero_grad()
        told["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return told

    return train


@pytest.fixture
def record(module, train, tmp_path) -> Callable[[], None]:
    """A recorder's work of 200 steps as in conf/train.yaml: 200 callbacks, two routings, one chunk written."""
    recording = compose("train", SETTING).recording
    source = TraceSource("nano16", "TopK", 0, 2048, 2, "none", "0")
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=0, is_global_zero=True)
    told = train()
    recorder = LoadRecorder(tmp_path, source, recording.chunk_steps, recording.routing_every)

    def record() -> None:
        # a recorder that starts again removes what it wrote: the cost of that is counted, too
        recorder.on_train_start(trainer, module)
        for step in range(200):
            recorder.on_train_batch_end(trainer, module, told, None, step)
        recorder.flush()

    return record


def test_training_step(benchmark, train):
    benchmark.group = "recording"
    told = benchmark.pedantic(train, rounds=30, warmup_rounds=3)
    assert told["loads"].sum(-1).tolist() == [4096] * 4


def test_recording_200_steps(benchmark, train, record, tmp_path):
    benchmark.group = "recording"
    benchmark.pedantic(record, rounds=10, warmup_rounds=1)
    assert len(list(tmp_path.glob("loads-*.npz"))) == 1
    assert len(list(tmp_path.glob("routing-*.npz"))) == 2
    if benchmark.enabled:
        step = min(_seconds(train) for _ in range(20))
        overhead = benchmark.stats.stats.min / 200 / step
        benchmark.extra_info["overhead"] = overhead
        print(f"\nrecording: {overhead:.2%} of a nano training step of {step * 1e3:.0f} ms (target {TARGET:.0%})")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
