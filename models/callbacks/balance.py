"""Log how evenly the experts of each layer are used."""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from routers.step_sum import sum_over_ranks


class BalanceMonitor(L.Callback):
    """Logs `balance/METRIC/layer_N` every n steps: scalars only, a histogram per expert and step would drown a run.

    Args:
        every: steps between logs.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # the n-th step, as Lightning's loggers count: another one would be written under the n-th's number
        if (batch_idx + 1) % (self.every * trainer.accumulate_grad_batches) == 0:
            for name, values in balance(sum_over_ranks(outputs["loads"])).items():
                pl_module.log_dict({f"balance/{name}/layer_{i}": value for i, value in enumerate(values)})


def balance(loads_LE: Integer[Tensor, "L E"]) -> dict[str, Float[Tensor, " L"]]:
    """Balance of each layer (L,) from its expert loads: 1 / 0 / 1 / 0 when even.

    max_over_mean; cv = standard deviation over mean; entropy over its maximum log(E); dead = share of experts without
    a token.
    """
    loads = loads_LE.float()
    mean = loads.mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    share = loads / loads.sum(-1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(-1) / torch.log(torch.tensor(float(loads.shape[-1])))
    return {
        "max_over_mean": loads.amax(-1) / mean,
        "cv": loads.std(-1, correction=0) / mean,
        "entropy": entropy,
        "dead": (loads == 0).float().mean(-1),
    }
