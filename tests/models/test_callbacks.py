"""The callbacks in a real Lightning Trainer."""

from collections.abc import Callable
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from models.callbacks.balance import BalanceMonitor, balance
from models.callbacks.probe import NoiseRecorder, ProbeRecorder, route
from models.callbacks.recorder import LoadRecorder
from routers.random import Random
from traces.store import read_loads, read_routings

PAIRS = 4 * 8 * 2  # token-expert pairs of a batch and layer
RANDOM_ROUTER = {"router": partial(Random, top_k=2)}


class Told(L.Callback):
    """Keeps what training steps tell, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self.loads, self.chosen = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.loads.append(outputs["loads"].numpy())
        self.chosen.append(torch.stack(outputs["expert_indices"]).numpy())


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_saver(tmp_path) -> Callable[..., ModelCheckpoint]:
    """A checkpoint every four steps, all of them kept."""
    return lambda name="": ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=4, save_top_k=-1)


class TestLoadRecorder:
    @pytest.mark.parametrize("chunk_steps", [1, 5, 100])
    def test_records_every_step(self, fit, source, told, tmp_path, chunk_steps):
        fit([LoadRecorder(tmp_path / "trace", source, chunk_steps), told])
        trace = read_loads(tmp_path / "trace")
        assert trace.step.tolist() == list(range(12))
        assert (trace.tokens.sum(-1) == PAIRS).all()
        np.testing.assert_array_equal(trace.tokens, np.stack(told.loads))
        assert len(list((tmp_path / "trace").glob("loads-*"))) == -(-12 // chunk_steps)

    def test_micro_batches_of_a_step_are_added(self, fit, source, told, tmp_path):
        fit([LoadRecorder(tmp_path / "trace", source, 5, routing_every=4), told], accumulate=3)
        trace = read_loads(tmp_path / "trace")
        assert trace.step.tolist() == list(range(12))
        np.testing.assert_array_equal(trace.tokens, np.stack(told.loads).reshape(12, 3, 2, 4).sum(1))
        sampled = read_routings(tmp_path / "trace")
        np.testing.assert_array_equal(sampled.expert_indices, np.stack(told.chosen[::12]))

    def test_routing_is_sampled(self, fit, source, told, tmp_path):
        fit([LoadRecorder(tmp_path / "trace", source, 5, routing_every=4), told])
        sampled = read_routings(tmp_path / "trace")
        assert sampled.step.tolist() == [0, 4, 8]
        np.testing.assert_array_equal(sampled.expert_indices, np.stack(told.chosen[::4]))

    def test_no_routing_unless_asked(self, fit, source, tmp_path):
        fit([LoadRecorder(tmp_path / "trace", source)], steps=2)
        assert list((tmp_path / "trace").glob("routing-*")) == []

    def test_a_checkpoint_finds_its_steps_written(self, fit, source, make_saver, tmp_path):
        written, saver = [], make_saver()
        save = saver._save_checkpoint
        saver._save_checkpoint = lambda *arguments: (
            save(*arguments),
            written.append(read_loads(tmp_path / "trace").step[-1]),
        )
        fit([LoadRecorder(tmp_path / "trace", source, 100), saver], enable_checkpointing=True)
        assert written == [3, 7, 11]

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_resumed_run_rewinds_and_goes_on(self, fit, source, make_saver, tmp_path, accumulate):
        def run(name, **options):
            callbacks = [LoadRecorder(tmp_path / name, source, 3, routing_every=2), make_saver(name)]
            fit(callbacks, accumulate=accumulate, enable_checkpointing=True, **options)
            return read_loads(tmp_path / name), read_routings(tmp_path / name)

        whole, whole_routing = run("whole")
        run("parts", steps=7)
        resumed, routing = run("parts", ckpt_path=tmp_path / "parts" / "step=4.ckpt")
        assert resumed.step.tolist() == list(range(12))
        np.testing.assert_array_equal(resumed.tokens, whole.tokens)
        np.testing.assert_array_equal(routing.expert_indices, whole_routing.expert_indices)

    def test_checkpoint_between_micro_batches(self, fit, source, told, tmp_path):
        class SaveAlways(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                trainer.save_checkpoint(tmp_path / "any.ckpt")

        fit([LoadRecorder(tmp_path / "trace", source), told, SaveAlways()], accumulate=3)
        trace = read_loads(tmp_path / "trace")
        np.testing.assert_array_equal(trace.tokens, np.stack(told.loads).reshape(12, 3, 2, 4).sum(1))

    def test_one_recorder_can_be_used_again(self, fit, source, make_module, tmp_path):
        class FailAt(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if batch_idx == 6:
                    raise RuntimeError("preempted")

        recorder = LoadRecorder(tmp_path / "trace", source, 5)
        with pytest.raises(RuntimeError, match="preempted"):
            fit([recorder, FailAt()])
        fit([recorder])
        assert read_loads(tmp_path / "trace").step.tolist() == list(range(12))
        assert (read_loads(tmp_path / "trace").tokens.sum(-1) == PAIRS).all()

    @pytest.mark.parametrize("values", [(0, 0), (5, -1)])
    def test_bad_value_is_named(self, source, tmp_path, values):
        with pytest.raises(ValueError, match=f"got {values[0]} and {values[1]}"):
            LoadRecorder(tmp_path, source, *values)

    def test_trace_of_another_source_is_refused(self, fit, source, tmp_path):
        fit([LoadRecorder(tmp_path / "trace", source)], steps=2)
        other = type(source)(**(vars(source) | {"seed": 9}))
        with pytest.raises(ValueError, match="holds a trace with source"):
            fit([LoadRecorder(tmp_path / "trace", other)], steps=2)


@pytest.fixture
def observers(source, stream, tmp_path):
    """A recorder of each kind of observation."""
    probe = stream.batch(90)["tokens"][:, :-1]
    fresh = [stream.batch(100 + i)["tokens"][:, :-1] for i in range(3)]
    return [
        ProbeRecorder(tmp_path / "probe", source, probe, every=5),
        NoiseRecorder(tmp_path, source, fresh, accumulate=1, steps=[0, 7]),
    ]


class TestObservers:
    @pytest.mark.parametrize("transformer", [{}, RANDOM_ROUTER], ids=["topk", "random"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_do_not_change_training(self, fit, make_module, observers, tmp_path, transformer, accumulate):
        first, second = make_module(transformer), make_module(transformer)
        _, alone = fit(module=first, accumulate=accumulate)
        _, observed = fit([*observers, BalanceMonitor(2)], module=second, accumulate=accumulate)
        assert observed == alone
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert read_loads(tmp_path / "probe").step.tolist() == [0, 5, 10]

    def test_probe_is_routed_by_the_weights_of_its_step(self, fit, make_module, observers, source, tmp_path):
        module = make_module()
        fit(observers, steps=6, module=module)
        trace = read_loads(tmp_path / "probe")
        np.testing.assert_array_equal(trace.tokens[-1], route(module, [observers[0].tokens])[0])
        assert trace.step.tolist() == [0, 5]

    def test_noise_batch_has_the_size_of_an_accumulated_step(self, fit, make_module, source, stream, tmp_path):
        fresh = [stream.batch(100 + i)["tokens"][:, :-1] for i in range(4)]
        module = make_module()
        fit([NoiseRecorder(tmp_path, source, fresh, accumulate=2, steps=[2])], steps=3, module=module, accumulate=2)
        (folder,) = tmp_path.glob("noise-*")
        single_RLE = route(module, fresh)
        np.testing.assert_array_equal(read_loads(folder).tokens, single_RLE[0::2] + single_RLE[1::2])

    def test_noise_is_a_folder_a_step(self, fit, observers, tmp_path):
        fit(observers)
        assert sorted(path.name for path in tmp_path.glob("noise-*")) == ["noise-00000000", "noise-00000007"]
        for folder in tmp_path.glob("noise-*"):
            assert read_loads(folder).step.tolist() == [0, 1, 2]
            assert (read_loads(folder).tokens.sum(-1) == PAIRS).all()

    def test_resumed_run_observes_the_same(self, fit, observers, make_saver, tmp_path):
        def observed():
            return [read_loads(tmp_path / name).tokens for name in ("probe", "noise-00000000", "noise-00000007")]

        fit([*observers, make_saver()], enable_checkpointing=True)
        whole = observed()
        fit(observers, ckpt_path=tmp_path / "step=4.ckpt")
        for resumed, expected in zip(observed(), whole, strict=True):
            np.testing.assert_array_equal(resumed, expected)

    def test_route_leaves_no_trace(self, make_module, stream):
        module = make_module(RANDOM_ROUTER)
        module.configure_model()
        module.train()
        module.transformer.norm.eval()  # frozen
        batches = [stream.batch(0)["tokens"][:, :-1]]
        first, second = route(module, batches), route(module, batches)
        np.testing.assert_array_equal(first, second)
        assert [name for name, m in module.named_modules() if not m.training] == ["transformer.norm"]
        assert all(parameter.grad is None for parameter in module.parameters())

    def test_probing_every_zero_steps_is_named(self, source, tmp_path):
        with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
            ProbeRecorder(tmp_path, source, torch.zeros(1, 8, dtype=torch.int64), every=0)


class TestBalance:
    def test_equals_numpy(self):
        loads = np.random.default_rng(0).integers(0, 50, (3, 8))
        loads[1, 2:5] = 0
        share = loads / loads.sum(-1, keepdims=True)
        entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(-1)
        expected = {
            "max_over_mean": loads.max(-1) / loads.mean(-1),
            "cv": loads.std(-1) / loads.mean(-1),
            "entropy": entropy / np.log(8),
            "dead": (loads == 0).mean(-1),
        }
        found = balance(torch.from_numpy(loads))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("loads", "expected"), [([6, 6, 6, 6], (1, 0, 1, 0)), ([24, 0, 0, 0], (4, 3**0.5, 0, 0.75))]
    )
    def test_even_and_collapsed(self, loads, expected):
        found = balance(torch.tensor([loads]))
        assert [value.item() for value in found.values()] == pytest.approx(expected, abs=1e-6)

    def test_no_tokens_are_finite(self):
        assert all(value.isfinite().all() for value in balance(torch.zeros(2, 4, dtype=torch.int64)).values())

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_logs_under_the_number_of_its_step(self, fit, told, tmp_path, accumulate):
        logger = CSVLogger(tmp_path, name="", version="metrics")
        fit([BalanceMonitor(4), told], accumulate=accumulate, logger=logger, log_every_n_steps=4)
        logged = np.genfromtxt(tmp_path / "metrics" / "metrics.csv", delimiter=",", names=True)
        assert logged["step"].tolist() == [3, 7, 11]
        for layer in range(2):
            loads = [told.loads[(step + 1) * accumulate - 1][layer] for step in (3, 7, 11)]
            expected = [load.max() / load.mean() for load in loads]
            np.testing.assert_allclose(logged[f"balancemax_over_meanlayer_{layer}"], expected, rtol=1e-5)

    def test_logging_every_zero_steps_is_named(self):
        with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
            BalanceMonitor(0)
