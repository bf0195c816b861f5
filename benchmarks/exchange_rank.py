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

# rounds in which experts compute, after the one that warms up: enough for a median
COMPUTED = 3


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
    def exchange(self, number: int) -> None:
        """One round over all layers. The first warms up and notes what is sent; in the next experts compute."""
        before = wire_bytes()
        seconds = [self._layer(layer, number) for layer in range(len(self.routings))]
        dist.barrier()
        self.told["wire"].append(wire_bytes() - before)
        columns = dict(zip(("dispatch", "compute", "combine"), zip(*seconds, strict=True), strict=True))
        if not 0 < number <= COMPUTED:
            del columns["compute"]
        for key, column in columns.items():
            self.told[key].append(column)

    def _layer(self, layer: int, number: int) -> tuple[float, float, float]:
        dispatcher, routing = self.dispatchers[layer], self.routings[layer]
        begun = together()
        rows, tokens_per_slot, plan = dispatcher.dispatch(self.rows, routing)
        dispatched = finished() - begun
        computed = 0.0
        if self.computes and number <= COMPUTED:
            begun = worked()
            self.experts(rows, tokens_per_slot)
            computed = worked() - begun
        if number == 0:
            self.told["rows"].append(plan.rows_sent.tolist())
            self.told["metadata"].append(plan.metadata_bytes_sent.tolist())
        begun = together()
        dispatcher.combine(rows, plan)
        return dispatched, computed, finished() - begun


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


def worked() -> float:
    """Seconds that this rank has computed: its processor's, as ranks may share cores; on CUDA its own device's."""
    return finished() if torch.cuda.is_initialized() else time.thread_time()


def wire_bytes() -> int:
    """Bytes that this node's interface has sent so far; 0 on a ground without one."""
    path = Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes")
    return int(path.read_text()) if os.environ.get("GLOO_SOCKET_IFNAME") == INTERFACE else 0


def measure(job: Job, rank: int, device: torch.device) -> dict[str, np.ndarray]:
    """All rounds of all variants; the first one is not timed."""
    prepared = {name: Prepared(job, variant, rank, device) for name, variant in job.variants.items()}
    generator = np.random.default_rng(job.seed)
    for number in range(job.rounds + 1):
        for name in generator.permutation(list(prepared)):
            prepared[str(name)].exchange(number)
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
    # another launcher's first rank reads what all wrote
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
