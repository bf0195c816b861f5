"""The device set a token takes when each device has a price (ours).

S maximises (top-K mass inside S) / (unrestricted top-K mass) - cost * |S| among the sets that hold at least K experts:
exactly, over all sets, up to 8 devices; beyond, devices are opened greedily while they gain.

A token's best K scores are kept as K rows, best first: joining the rows of two sets keeps the larger of a_i and
b_(K-1-i), which are the best K of both.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_DEVICES_EXACT = 8
# values a chunk of tokens works on: about what a CPU's cache holds; a GPU wants few launches instead
CHUNK_VALUES = {"cpu": 2**19, "cuda": 2**26}


def best_sets(scores: Float[Tensor, "C G T"], top_k: int, cost: Float[Tensor, ""]) -> Bool[Tensor, "T G"]:
    """The best device set of each token (T, G).

    Of equally good sets the exact search takes none that contains another. The greedy one fills the K places first.

    Args:
        scores: (C, G, T) probabilities of each device's experts, -inf where a device holds fewer than C.
        top_k: K; all devices together hold as many experts.
        cost: price of a device, in shares of the unrestricted top-K mass.
    """
    capacity, num_devices, _ = scores.shape
    # so bad that a set which lacks experts loses against every one that does not
    absent = -(2 + cost * num_devices)
    search, num_rows = (_exact, 2**num_devices) if num_devices <= MOST_DEVICES_EXACT else (_greedy, num_devices)
    chunk = max(1, CHUNK_VALUES.get(scores.device.type, 2**26) // (num_rows * top_k))
    found = []
    for part in scores.split(chunk, dim=-1):
        lacking = [absent.expand(part.shape[1:])] * max(0, top_k - capacity)
        found.append(search(best_first([*part.maximum(absent), *lacking], top_k), cost, absent))
    return torch.cat(found)


def best_first(rows: Sequence[Tensor], num_best: int) -> list[Tensor]:
    """The elementwise best `num_best` of some tensors of one shape, best first; fewer where there are fewer.

    A network of maxima and minima over whole rows: for few rows several times faster than a top-k over a short axis.
    """
    sorted_rows = list(rows)
    for front in range(min(num_best, len(sorted_rows))):
        for i in range(len(sorted_rows) - 1, front, -1):
            above, below = sorted_rows[i - 1], sorted_rows[i]
            sorted_rows[i - 1], sorted_rows[i] = torch.maximum(above, below), torch.minimum(above, below)
    return sorted_rows[:num_best]


def _join(rows: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The best K of two times K rows, all best first."""
    larger = [torch.maximum(row, other) for row, other in zip(rows, reversed(others), strict=True)]
    return best_first(larger, len(larger))


def _mass(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)).sum(0)


def _exact(best: list[Float[Tensor, "G T"]], cost: Float[Tensor, ""], absent: Float[Tensor, ""]) -> Bool[Tensor, "T G"]:
    """All sets of at most K devices: each device joins those of the devices before it that are not full.

    Larger sets need no search: a device without an expert among the K best of its set costs and adds nothing.
    """
    num_devices, num_tokens = best[0].shape
    # a set's number has the bits of its members
    sets = [0]
    rows = [absent.expand(1, num_tokens)] * len(best)
    for g in range(num_devices):
        not_full = [i for i, members in enumerate(sets) if members.bit_count() < len(best)]
        growing = torch.tensor(not_full, device=absent.device)
        joined = _join([row.index_select(0, growing) for row in rows], [row[g] for row in best])
        rows = [torch.cat(pair) for pair in zip(rows, joined, strict=True)]
        sets += [sets[i] | 1 << g for i in not_full]
    mass = _mass(rows)[1:]
    member = _bits(torch.tensor(sets[1:], device=absent.device), num_devices)
    # the unrestricted K best lie on at most K devices
    value = mass / mass.amax(0) - cost * member.sum(-1, keepdim=True)
    return member[value.argmax(0)]


def _bits(sets: Int[Tensor, " S"], num_devices: int) -> Bool[Tensor, "S G"]:
    return (sets[:, None] >> torch.arange(num_devices, device=sets.device)) % 2 == 1


def _greedy(
    best: list[Float[Tensor, "G T"]], cost: Float[Tensor, ""], absent: Float[Tensor, ""]
) -> Bool[Tensor, "T G"]:
    """Open the device of the largest gain while one gains; each round asks the host whether any token goes on."""
    num_devices, num_tokens = best[0].shape
    rows = everywhere = [absent.expand(1, num_tokens)] * len(best)
    for g in range(num_devices):
        everywhere = _join(everywhere, [row[g : g + 1] for row in best])
    member = torch.zeros(num_devices, num_tokens, dtype=torch.bool, device=absent.device)
    numbers = torch.arange(num_devices, device=absent.device)[:, None]
    for _ in range(num_devices):
        joined = _join(rows, best)
        gain = (_mass(joined) - _mass(rows)) / _mass(everywhere) - cost
        largest, device = gain.masked_fill(member, -torch.inf).max(0, keepdim=True)
        opens = largest > 0
        if not opens.any():
            break
        member |= opens & (numbers == device)
        rows = [torch.where(opens, after.gather(0, device), row) for after, row in zip(joined, rows, strict=True)]
    return member.T
