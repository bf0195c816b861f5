"""Ranks of test_fully_sharded.py, who shard dense weights too: `python sharded_cases.py RANK STORE OUT NUM_RANKS PORT
CASES...`.

Cases are those of train_cases.py, here with `reshard`, whether blocks are gathered anew for the backward pass. Each
model was just validated when it is saved; a checkpoint that is only validated is saved anew.
"""

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch
from torch.distributed.tensor import DTensor
from train_cases import Data, module, strategy

from models.expert_parallel.fully_sharded import FullyShardedExpertParallelStrategy


class ValidatedData(Data):
    def val_dataloader(self):
        return self.train_dataloader()


def trainer(world_size: int, placement: str, dispatcher: str, reshard: bool | None, **options) -> L.Trainer:
    plain = strategy(world_size, placement, dispatcher)
    sharded = FullyShardedExpertParallelStrategy(
        plain.topology,
        plain.placement,
        plain.dispatcher,
        timeout_seconds=60.0,
        process_group_backend="gloo",
        fsdp={"reshard_after_forward": reshard},
    )
    return L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=sharded,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def train(
    rank: int,
    world_size: int,
    out: Path,
    *,
    name: str,
    dispatcher: str = "per_device",
    placement: str = "contiguous",
    router: str = "topk",
    optimizer: str = "adamw",
    steps: int = 6,
    length: int | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    resume: str | None = None,
    seed_of_rank: int = 0,
    reshard: bool | None = None,
) -> None:
    options = {"max_steps": steps, "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    together = trainer(world_size, placement, dispatcher, reshard, val_check_interval=3, **options)
    model = module(router, optimizer, seed_of_rank * rank)
    data = ValidatedData((length or steps) * accumulate)
    together.fit(model, data, ckpt_path=resume, weights_only=True)
    dense = [p for key, p in model.named_parameters() if ".experts." not in key]
    assert all(isinstance(p, DTensor) for p in dense)
    together.save_checkpoint(out / f"{name}.ckpt")
    if rank == 0:
        (out / f"{name}.json").write_text(json.dumps(model.noted))


def load(rank: int, world_size: int, out: Path, *, name: str, checkpoint: str) -> None:
    """Validate a checkpoint in a new model and save its weights again."""
    anew = trainer(world_size, "replicas", "per_node", None)
    model = module(seed=7)
    found = anew.validate(model, ValidatedData(6), ckpt_path=str(out / checkpoint), weights_only=True, verbose=False)
    anew.save_checkpoint(out / f"{name}.ckpt", weights_only=True)
    if rank == 0:
        (out / f"{name}.json").write_text(json.dumps(found[0]["held_out/all"]))


def main(rank: int, out: Path, world_size: int, port: str, cases: list[str]) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ.update(place)
    torch.set_num_threads(1)
    for case in map(json.loads, cases):
        (load if "checkpoint" in case else train)(rank, world_size, out, **case)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:])
