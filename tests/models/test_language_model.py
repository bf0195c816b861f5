import math
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader

from routers.loss_free import LossFree
from routers.topk import TopK


@pytest.fixture
def batch(stream):
    return stream.batch(0)


@pytest.fixture
def make_ready(make_module):
    """A module whose transformer is built and that logs nowhere."""

    def make(transformer=None, **changes):
        module = make_module(transformer, **changes)
        module.configure_model()
        module.log = lambda *_, **__: None
        return module

    return make


class TestTrainingStep:
    def test_loss_is_cross_entropy_and_auxiliary_losses(self, make_ready, batch):
        module = make_ready()
        logits, moe = module(batch["tokens"][:, :-1])
        shares = logits.log_softmax(-1)
        chosen = [shares[b, s, batch["tokens"][b, s + 1]] for b in range(4) for s in range(8)]
        expected = -sum(chosen) / len(chosen) + sum(layer.losses["balance"] for layer in moe)
        torch.testing.assert_close(module.training_step(batch, 0)["loss"], expected)

    def test_tells_what_callbacks_observe(self, make_ready, batch):
        told = make_ready().training_step(batch, 0)
        assert told["loads"].shape == (2, 4)
        assert told["loads"].sum(-1).tolist() == [4 * 8 * 2] * 2
        assert [tuple(chosen.shape) for chosen in told["expert_indices"]] == [(32, 2)] * 2

    def test_learns_a_tiny_batch_by_heart(self, make_ready, batch):
        module = make_ready(learning_rate=0.03, final_learning_rate=0.003, total_steps=150)
        configured = module.configure_optimizers()
        for _ in range(150):
            loss = module.training_step(batch, 0)["loss"]
            configured["optimizer"].zero_grad()
            loss.backward()
            configured["optimizer"].step()
            configured["lr_scheduler"]["scheduler"].step()
        assert loss.item() < 0.3 < 0.9 * math.log(32)


class TestValidation:
    def test_held_out_loss_by_domain(self, make_module, fit, stream):
        module = make_module(domains=("even", "odd"))
        batches = [stream.batch(100), {key: rows[:1] for key, rows in stream.batch(101).items()}]
        trainer, _ = fit(steps=2, module=module)
        trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
        found = {name: value.item() for name, value in trainer.callback_metrics.items()}
        for number, name in enumerate(["even", "odd"]):
            assert found[f"held_out/{name}"] == pytest.approx(self._slowly(module, batches, number), rel=1e-5)
        assert found["held_out/all"] == pytest.approx(self._slowly(module, batches, None), rel=1e-5)

    def _slowly(self, module, batches, domain):
        sequences = [s for b in batches for s, d in zip(b["tokens"], b["domain"], strict=True) if domain in (None, d)]
        with torch.no_grad():
            losses = [F.cross_entropy(module(s[None, :-1]).logits[0], s[1:]).item() for s in sequences]
        return sum(losses) / len(losses)


class TestSchedule:
    def test_warm_up_then_half_a_cosine(self, make_module):
        module = make_module(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=4, total_steps=24)
        assert [module.rate_factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert module.rate_factor(14) == pytest.approx(0.55)
        assert module.rate_factor(24) == module.rate_factor(1000) == pytest.approx(0.1)
        falling = [module.rate_factor(step) for step in range(4, 25)]
        assert falling == sorted(falling, reverse=True)

    def test_constant_rate(self, make_module):
        module = make_module(learning_rate=0.5, final_learning_rate=0.5, warmup_steps=0, total_steps=10)
        assert {module.rate_factor(step) for step in range(12)} == {1.0}

    def test_length_below_one_is_named(self, make_module):
        with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
            make_module(total_steps=0)


class TestOptimizer:
    def test_groups_cover_every_parameter_once(self, make_ready):
        module = make_ready({"moe_every": 2})
        groups = module.configure_optimizers()["optimizer"].param_groups
        covered = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(covered) == sorted(id(parameter) for parameter in module.parameters())

    def test_only_matrices_decay(self, make_ready):
        module = make_ready({"moe_every": 2}, weight_decay=0.3)
        decay = {
            id(parameter): group["weight_decay"]
            for group in module.configure_optimizers()["optimizer"].param_groups
            for parameter in group["params"]
        }
        for name, parameter in module.named_parameters():
            plain = name.endswith("bias") or "norm" in name
            assert decay[id(parameter)] == (0.0 if plain else 0.3), name


class TestCheckpoint:
    @pytest.fixture
    def checkpoint(self, fit, tmp_path):
        fit([ModelCheckpoint(tmp_path, filename="{step}")], steps=2, enable_checkpointing=True)
        return tmp_path / "step=2.ckpt"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_experts": 8}, r"num_experts = 4 \(here 8\)$"),
            ({"num_heads": 4, "expert_dim": 24}, r"num_heads = 2 \(here 4\), expert_dim = 16 \(here 24\)$"),
            ({"moe_every": 2}, r"num_moe_layers = 2 \(here 1\)$"),
        ],
    )
    def test_of_another_model_is_refused(self, checkpoint, fit, make_module, change, message):
        with pytest.raises(ValueError, match=f"^checkpoint of another model: it has {message}"):
            fit(ckpt_path=checkpoint, module=make_module(change))

    def test_older_one_with_fewer_sizes_is_taken(self, make_ready):
        module, checkpoint = make_ready(), {}
        module.on_save_checkpoint(checkpoint)
        del checkpoint["shape"]["num_heads"]
        module.on_load_checkpoint(checkpoint)
        checkpoint["shape"]["dim"] = 32
        with pytest.raises(ValueError, match=r"dim = 32 \(here 16\)$"):
            module.on_load_checkpoint(checkpoint)

    def test_of_another_program_is_refused(self, make_ready):
        with pytest.raises(ValueError, match="another program: it has no shape"):
            make_ready().on_load_checkpoint({})


class Calls(TopK):
    """Counts its steps, in every checkpoint."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def finish_step(self):
        self.steps += 1


class TestRoutersThatSteer:
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_are_told_once_after_each_optimiser_step_and_before_its_checkpoint(
        self, make_module, fit, tmp_path, accumulate
    ):
        module = make_module({"router": partial(Calls, top_k=2)})
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        fit([saver], steps=4, accumulate=accumulate, module=module, enable_checkpointing=True)
        assert [router.steps.item() for router in module.decoder.routers] == [4, 4]
        saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
        assert [value.item() for name, value in saved.items() if name.endswith("router.steps")] == [2, 2]

    def test_adaptive_biases_resume_as_if_never_interrupted(self, make_module, fit, tmp_path):
        def module():
            return make_module({"router": partial(LossFree, top_k=2, update_rate=0.05)})

        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        _, whole = fit([saver], steps=8, module=module(), enable_checkpointing=True)
        _, resumed = fit(steps=8, module=module(), ckpt_path=tmp_path / "step=4.ckpt")
        assert resumed == whole[4:]
