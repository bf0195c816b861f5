"""One rank of an exchange measurement: python -m benchmarks.exchange_rank FOLDER BACKEND, started by run_ranks."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import models.dispatch
from benchmarks.cluster.counters import INTERFACE
from benchmarks.exchange_job import DISPATCHERS, Job, Variant, read_job
from models.dispatch import Dispatcher, make_shard
from models.experts import LoopExperts
from routers.base import Routing
from traces.atomic import write_atomically


class Prepared:
    """One variant on this rank: dispatchers, rows and routings of every layer, and what was measured so far."""

    def __init__(self, job: Job, variant: Variant, rank: int, device: torch.device) -> None:
        placement = job.placements[variant.placement]
        make: Callable[..., Dispatcher] = getattr(models.dispatch, DISPATCHERS[variant.dispatcher])
        mine = job.starts(variant.routing) == rank
        self.routings = [
            routing(chosen[mine], placement.num_experts, device) for chosen in job.routings[variant.routing]
        ]
        self.dispatchers = [
            make(make_shard(placement, job.topology, layer, everybody(), device)) for layer in range(len(self.routings))
        ]
        generator = torch.Generator().manual_seed(job.seed)
        self.rows = torch.randn(int(mine.sum()), job.width, generator=generator).to(device)
        self.experts = LoopExperts(placement.slots_per_device, job.width, job.hidden).to(device)
        self.computes = variant.computes
        self.told: dict[str, list[Any]] = {
            key: [] for key in ("dispatch", "combine", "compute", "rows", "metadata", "wire")
        }

    @torch.no_grad()
    def exchange(self, counts: bool) -> None:
        """One round over all layers; experts compute, and what was sent is noted, in the first one only."""
        before = wire_bytes()
        seconds = [self._layer(layer, counts) for layer in range(len(self.routings))]
        dist.barrier()
        self.told["wire"].append(wire_bytes() - before)
        for key, column in zip(("dispatch", "combine"), zip(*seconds, strict=True), strict=True):
            self.told[key].append(column)

    def _layer(self, layer: int, counts: bool) -> tuple[float, float]:
        dispatcher, routing = self.dispatchers[layer], self.routings[layer]
        begun = together()
        rows, tokens_per_slot, plan = dispatcher.dispatch(self.rows, routing)
        dispatched = finished() - begun
        if counts:
            self._count(rows, tokens_per_slot, plan)
        begun = together()
        dispatcher.combine(rows, plan)
        return dispatched, finished() - begun

    def _count(self, rows: torch.Tensor, tokens_per_slot: torch.Tensor, plan: Any) -> None:
        self.told["rows"].append(plan.rows_sent.tolist())
        self.told["metadata"].append(plan.metadata_bytes_sent.tolist())
        begun = time.thread_time()
        if self.computes:
            self.experts(rows, tokens_per_slot)
        self.told["compute"].append(time.thread_time() - begun)


def routing(chosen: np.ndarray, num_experts: int, device: torch.device) -> Routing:
    """Even weights: what is moved does not depend on them."""
    indices = torch.from_numpy(chosen.astype(np.int64)).to(device)
    weights = (indices >= 0) / indices.shape[1]
    return Routing(torch.zeros(len(chosen), num_experts, device=device), weights, indices)


def everybody() -> dist.ProcessGroup:
    """The group of all ranks."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def together() -> float:
    """Now, when all ranks have come here."""
    finished()
    dist.barrier()
    return time.perf_counter()


def finished() -> float:
    """Now, when the device has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def wire_bytes() -> int:
    """Bytes that this node's interface has sent so far; 0 on a ground without one."""
    path = Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes")
    return int(path.read_text()) if os.environ.get("GLOO_SOCKET_IFNAME") == INTERFACE else 0


def measure(job: Job, rank: int, device: torch.device) -> dict[str, np.ndarray]:
    """All rounds of all variants; the first round, which counts and warms up, is not timed."""
    prepared = {name: Prepared(job, variant, rank, device) for name, variant in job.variants.items()}
    generator = np.random.default_rng(job.seed)
    for number in range(job.rounds + 1):
        for name in generator.permutation(list(prepared)):
            prepared[str(name)].exchange(counts=number == 0)
    for one in prepared.values():
        for key in ("dispatch", "combine", "wire"):
            del one.told[key][0]
    return {f"{name}/{key}": np.asarray(value) for name, one in prepared.items() for key, value in one.told.items()}


def main(folder: Path, backend: str) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, device_id=device if backend == "nccl" else None)
    found = measure(read_job(folder), rank, device)
    write_atomically(folder / f"rank-{rank}.npz", lambda file: np.savez(file, allow_pickle=False, **found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
