"""Ranks of test_fully_sharded.py, who shard dense weights too: `python sharded_cases.py FOLDER CASES...`.

Cases are those of train_cases.py, here with `reshard`, whether blocks are gathered anew for the backward pass. Each
model was just validated when it is saved; a checkpoint that is only validated is saved anew.
"""

import json
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor
from train_cases import Data, asked, fit, module, strategy, trainer

from models.expert_parallel.fully_sharded import FullyShardedExpertParallelStrategy as FullySharded


class ValidatedData(Data):
    def val_dataloader(self):
        return self.train_dataloader()


def train(
    ranks: int,
    folder: Path,
    *,
    name: str,
    placement: str = "contiguous",
    dispatcher: str = "per_device",
    reshard: bool | None = None,
    **case: Any,
) -> None:
    sharded = strategy(ranks, placement, dispatcher, FullySharded, fsdp={"reshard_after_forward": reshard})
    together = fit(folder, ranks, sharded, ValidatedData, name=name, val_check_interval=3, **case)
    dense = [p for key, p in together.lightning_module.named_parameters() if ".experts." not in key]
    assert all(isinstance(p, DTensor) for p in dense)
    together.save_checkpoint(folder / f"{name}.ckpt")


def load(ranks: int, folder: Path, *, name: str, checkpoint: str) -> None:
    """Validate a checkpoint in a new model and save its weights again."""
    anew = trainer(folder, ranks, strategy(ranks, "replicas", "per_node", FullySharded))
    model, path = module(seed=7), folder / checkpoint
    found = anew.validate(model, ValidatedData(6), ckpt_path=path, weights_only=True, verbose=False)
    anew.save_checkpoint(folder / f"{name}.ckpt", weights_only=True)
    if anew.is_global_zero:
        (folder / f"{name}.json").write_text(json.dumps(found[0]["held_out/all"]))


if __name__ == "__main__":
    ranks, folder, cases = asked()
    for case in cases:
        (load if "checkpoint" in case else train)(ranks, folder, **case)
