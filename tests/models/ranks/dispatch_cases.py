"""The cases of test_dispatchers.py, and what one rank computes: `python dispatch_cases.py FOLDER`.

Every rank makes the same whole batch from a seed and takes its own tokens of it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from models.dispatch import PerDeviceDispatcher, PerExpertDispatcher, PerNodeDispatcher, make_shard
from models.experts import LoopExperts
from placement.topology import Placement, Topology
from routers.base import Routing

DISPATCHERS = {"per_expert": PerExpertDispatcher, "per_device": PerDeviceDispatcher, "per_node": PerNodeDispatcher}
WIDTH, HIDDEN, EXPERTS, TOP_K = 8, 12, 10, 3
TOPOLOGY = Topology(2, 2, 1e9, 1e9, 1e-6, 1e-6)
PLACEMENTS = {
    "contiguous": [[0, 1, 2], [3, 4, 5], [6, 7, -1], [8, 9, -1]],
    "scattered": [[7, 0], [3, 9, 1], [2, 8, 4], [6, 5]],
    "replicas": [[0, 1, 2, 9], [0, 3, 4, 5], [0, 6, 7, 2], [8, 9, 5, 0]],
}
ROUTINGS = ("uniform", "skewed", "dropped", "one_expert", "zero_tokens")
CASES = [(placement, routing) for placement in PLACEMENTS for routing in ROUTINGS]


def placement(name: str) -> Placement:
    slots = PLACEMENTS[name]
    widest = max(len(device) for device in slots)
    return Placement(np.array([[device + [-1] * (widest - len(device)) for device in slots]]))


def batch(routing: str) -> tuple[torch.Tensor, Routing, torch.Tensor, list[int]]:
    """Hidden states (T, D), their routing, the gradient of the output (T, D), and how many tokens each rank has."""
    generator = torch.Generator().manual_seed(ROUTINGS.index(routing))
    share = [5, 0, 9, 0] if routing == "zero_tokens" else [6, 7, 5, 8]
    num_tokens = sum(share)
    favour = torch.linspace(3, 0, EXPERTS).exp() if routing == "skewed" else torch.ones(EXPERTS)
    chosen = torch.multinomial(favour.expand(num_tokens, -1), TOP_K, generator=generator)
    if routing == "one_expert":
        chosen = torch.full((num_tokens, 1), 4)
    if routing == "dropped":
        chosen[torch.rand(chosen.shape, generator=generator) < 0.4] = -1
    weights = torch.rand(chosen.shape, generator=generator) * (chosen >= 0)
    scores = torch.rand(num_tokens, EXPERTS, generator=generator)
    x, gradient = torch.randn(2, num_tokens, WIDTH, generator=generator)
    return x, Routing(scores, weights, chosen), gradient, share


def experts() -> LoopExperts:
    torch.manual_seed(0)
    return LoopExperts(EXPERTS, WIDTH, HIDDEN, init_std=0.5)


def compute(case: tuple[str, str], dispatcher_name: str, rank: int) -> dict[str, np.ndarray]:
    """Output, gradients of inputs, weights and this rank's slots, and rows sent."""
    where, (x, routing, gradient, share) = placement(case[0]), batch(case[1])
    first = sum(share[:rank])
    mine = slice(first, first + share[rank])
    x = x[mine].clone().requires_grad_()
    weights = routing.expert_weights[mine].clone().requires_grad_()
    shard = make_shard(where, TOPOLOGY, 0, dist.group.WORLD, torch.device("cpu"))
    local = LoopExperts(where.slots_per_device, WIDTH, HIDDEN)
    held = torch.from_numpy(where.slots[0, rank])
    with torch.no_grad():
        for mine_p, whole in zip(local.parameters(), experts().parameters(), strict=True):
            mine_p.copy_(whole[held.clamp(min=0)])
    dispatcher = DISPATCHERS[dispatcher_name](shard)
    rows, counts, plan = dispatcher.dispatch(x, Routing(routing.scores[mine], weights, routing.expert_indices[mine]))
    out = dispatcher.combine(local(rows, counts), plan)
    out.backward(gradient[mine])
    found = {"out": out, "x": x.grad, "weights": weights.grad, "w1": local.w1.grad, "w2": local.w2.grad}
    found |= {"counts": counts, "rows_sent": plan.rows_sent, "metadata": plan.metadata_bytes_sent}
    return {key: value.detach().numpy() for key, value in found.items()}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for case in CASES:
        for name in DISPATCHERS:
            for key, value in compute(case, name, rank).items():
                found["/".join((*case, name, key))] = value
    np.savez(folder / f"rank{rank}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
