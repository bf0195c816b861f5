"""The LightningModule: next-token training of a decoder with MoE layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from models.transformer import DecoderOutput, Transformer


class LanguageModel(L.LightningModule):
    """Trains a `Transformer` on batches {"tokens": (B, S + 1), "domain": (B,)}.

    Args:
        transformer: builds the decoder; called in `configure_model`, so that it starts on the right device and dtype.
        learning_rate: peak.
        final_learning_rate: where the cosine ends; equal to the peak = constant rate.
        warmup_steps: linear warm-up.
        total_steps: length of the schedule in optimiser steps.
        weight_decay: on matrices only; norms and biases are not decayed.
        betas: AdamW's.
        domains: names of the text domains, which a batch's `domain` counts from 0, for the held-out losses.

    `training_step` returns {"loss", "loads" (L, E), "expert_indices" [L x (T, K)], "rows_sent" (L, G),
    "metadata_bytes_sent" (L, G)}: callbacks observe from there, this rank's tokens only.
    """

    def __init__(
        self,
        transformer: Callable[[], Transformer],
        *,
        learning_rate: float,
        final_learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        weight_decay: float = 0.1,
        betas: Sequence[float] = (0.9, 0.95),
        domains: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self.build = transformer
        self.learning_rate, self.final_learning_rate = learning_rate, final_learning_rate
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.weight_decay, self.betas, self.domains = weight_decay, (betas[0], betas[1]), tuple(domains)
        self.transformer: Transformer | None = None

    def configure_model(self) -> None:
        if self.transformer is None:
            self.transformer = self.build()

    def forward(self, token_ids: Int[Tensor, "B S"]) -> DecoderOutput:
        return self.decoder(token_ids)

    @property
    def decoder(self) -> Transformer:
        """The transformer, which exists once Lightning has called `configure_model`."""
        assert self.transformer is not None, "configure_model builds the transformer"
        return self.transformer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        output, cross_entropy_BS = self._predict(batch)
        cross_entropy = cross_entropy_BS.mean()
        auxiliary = [loss for layer in output.moe for loss in layer.losses.values()]
        self.log("train/cross_entropy", cross_entropy.detach(), batch_size=len(cross_entropy_BS))
        return {
            "loss": cross_entropy + sum(auxiliary),
            "loads": torch.stack([layer.load for layer in output.moe]),
            "expert_indices": [layer.routing.expert_indices for layer in output.moe],
            "rows_sent": torch.stack([layer.plan.rows_sent for layer in output.moe]),
            "metadata_bytes_sent": torch.stack([layer.plan.metadata_bytes_sent for layer in output.moe]),
        }

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        super().optimizer_step(*arguments, **keywords)
        # before any callback: a checkpoint of this step holds what routers learned from it
        for router in self.decoder.routers:
            router.finish_step()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        _, cross_entropy_BS = self._predict(batch)
        # a domain that this batch lacks weighs nothing: ranks that log different names would mix them up
        for number, name in enumerate(self.domains):
            of_domain = cross_entropy_BS[batch["domain"] == number]
            mean = of_domain.mean() if len(of_domain) else cross_entropy_BS.new_zeros(())
            self.log(f"held_out/{name}", mean, batch_size=len(of_domain), sync_dist=True)
        self.log("held_out/all", cross_entropy_BS.mean(), batch_size=len(cross_entropy_BS), sync_dist=True)

    def _predict(self, batch: dict[str, Tensor]) -> tuple[DecoderOutput, Float[Tensor, "B S"]]:
        """The decoder's output and the cross-entropy of every position in nats."""
        token_ids = batch["tokens"]
        output = self(token_ids[:, :-1])
        losses = F.cross_entropy(output.logits.float().flatten(0, 1), token_ids[:, 1:].flatten(), reduction="none")
        return output, losses.view(token_ids.shape[0], -1)

    def configure_optimizers(self) -> dict[str, Any]:
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=self.betas,
        )
        # a lambda, as of a bound method the scheduler would save what decorators keep on it
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_factor(self, step: int) -> float:
        """Learning rate at a step over its peak: linear warm-up, then half a cosine to the final rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        floor = self.final_learning_rate / self.learning_rate
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["shape"] = self.decoder.shape

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected = self.decoder.shape
        if "shape" not in checkpoint:
            raise ValueError(f"checkpoint of another program: it has no shape, this model has {expected}")
        # sizes that an older checkpoint does not hold were not compared when it was written
        found = {name: checkpoint["shape"].get(name, size) for name, size in expected.items()}
        other = [f"{name} = {found[name]} (here {size})" for name, size in expected.items() if found[name] != size]
        if other:
            raise ValueError(f"checkpoint of another model: it has {', '.join(other)}")
