"""One hop: every row travels once to each distinct device among its (row, expert) pairs, and sums travel back.

What an expert needs to know of a row travels beside it: for each pair its place among the rows (int32) and its weight.
Pairs are sorted by destination and expert, so that counts alone tell the receiver which expert each is for.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from models.dispatch.exchange import Exchange, exchange_counts
from routers.losses import count_tokens


class Pairs(NamedTuple):
    """Which row goes to which expert.

    Attributes:
        row: (P,) the row of each pair.
        key: (P,) where it goes: device * keys + key on the sending side, the key alone on the receiving side.
        weight: (P,) the router's weight.
    """

    row: Int[Tensor, " P"]
    key: Int[Tensor, " P"]
    weight: Float[Tensor, " P"]


@dataclass(frozen=True, eq=False)
class Hop:
    """A hop under way, and the way back.

    Attributes:
        num_rows: rows that could be sent.
        sent_row: (S,) the row of each copy sent, sorted by destination.
        exchange: of the copies.
        travelling: (R, D) the copies, not to be read before `receive`.
        beside: exchanges of the pairs' places and weights.
        travelling_beside: (P,) each, not to be read before `receive` either.
        counts_received: (G, 1 + keys) rows, then pairs for each key, from each device.
        rows_sent: (G,) copies sent to each device, the own one included.
        metadata_bytes_sent: (G,) bytes sent beside them.
    """

    num_rows: int
    sent_row: Int[Tensor, " S"]
    exchange: Exchange
    travelling: Float[Tensor, "R D"]
    beside: tuple[Exchange, Exchange]
    travelling_beside: tuple[Int[Tensor, " P"], Float[Tensor, " P"]]
    counts_received: Int[Tensor, "G n"]
    rows_sent: Int[Tensor, " G"]
    metadata_bytes_sent: Int[Tensor, " G"]

    @property
    def pairs_per_key(self) -> Int[Tensor, " keys"]:
        """(keys,) pairs that arrived for each key."""
        return self.counts_received[:, 1:].sum(0)

    def receive(self) -> tuple[Float[Tensor, "R D"], Pairs]:
        """The copies that arrived, sorted by source, and the pairs that came beside them."""
        rows_RD = self.exchange.wait(self.travelling)
        place_P, weight_P = (one.wait(sent) for one, sent in zip(self.beside, self.travelling_beside, strict=True))
        return rows_RD, _arrived(place_P, self.counts_received, weight_P)

    def give_back(self, y_RD: Float[Tensor, "R D"]) -> Float[Tensor, " rows D"]:
        """Send each copy's result back where it came from; a row's results are summed (rows, D).

        Results travel in the precision in which the copies came and are summed in their own.
        """
        returned_SD = self.exchange.back(y_RD.to(self.travelling.dtype)).to(y_RD.dtype)
        return returned_SD.new_zeros(self.num_rows, y_RD.shape[1]).index_add(0, self.sent_row, returned_SD)


def start_hop(x_RD: Float[Tensor, " rows D"], pairs: Pairs, num_keys: int, group: dist.ProcessGroup) -> Hop:
    """Send each row once to every distinct device of its pairs; nothing is waited for but the counts.

    Args:
        x_RD: (rows, D) the rows.
        pairs: `key` = device * num_keys + key.
        num_keys: distinct keys of a device.
    """
    num_rows, num_devices = len(x_RD), dist.get_world_size(group)
    order = pairs.key.argsort(stable=True)
    row, key, device = pairs.row[order], pairs.key[order], pairs.key[order] // num_keys
    needs_GR = torch.zeros(num_devices, num_rows, dtype=torch.bool, device=x_RD.device)
    needs_GR[device, row] = True
    rows_sent_G = needs_GR.sum(1)
    pairs_GK = count_tokens(key[:, None], num_devices * num_keys).view(num_devices, num_keys)
    counts_sent = torch.cat([rows_sent_G[:, None], pairs_GK], 1)
    counts_received = exchange_counts(counts_sent, group)
    rows_out, rows_in, pairs_out, pairs_in = _splits(counts_sent, counts_received)
    sent_row = needs_GR.nonzero()[:, 1]
    of_rows = Exchange(rows_out, rows_in, group)
    beside = Exchange(pairs_out, pairs_in, group), Exchange(pairs_out, pairs_in, group)
    travelling = of_rows.start(x_RD[sent_row])
    place, weight = (needs_GR.cumsum(1) - 1)[device, row].to(torch.int32), pairs.weight[order]
    travelling_beside = beside[0].start(place), beside[1].start(weight)
    metadata = pairs_GK.sum(1) * (place.element_size() + weight.element_size()) + counts_sent[0].nbytes
    return Hop(
        num_rows, sent_row, of_rows, travelling, beside, travelling_beside, counts_received, rows_sent_G, metadata
    )


def _splits(sent: Int[Tensor, "G n"], received: Int[Tensor, "G n"]) -> list[list[int]]:
    """Rows sent, rows received, pairs sent, pairs received by device, for which the host waits.

    It waits once more for `nonzero`, here and where choices are addressed.
    """
    both = torch.stack([sent[:, 0], received[:, 0], sent[:, 1:].sum(1), received[:, 1:].sum(1)])
    return both.tolist()


def _arrived(place_P: Int[Tensor, " P"], counts_received: Int[Tensor, "G n"], weight_P: Float[Tensor, " P"]) -> Pairs:
    rows_G, pairs_GK = counts_received[:, 0], counts_received[:, 1:]
    num_devices, num_keys = pairs_GK.shape
    numbers = torch.arange(num_devices * num_keys, device=place_P.device)
    source_key_P = numbers.repeat_interleave(pairs_GK.reshape(-1), output_size=len(place_P))
    first_row_G = rows_G.cumsum(0) - rows_G
    return Pairs(place_P + first_row_G[source_key_P // num_keys], source_key_P % num_keys, weight_P)
