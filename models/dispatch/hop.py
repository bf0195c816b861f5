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
        travelling: (R, D) what arrives, not to be read before `receive`.
        pairs: what arrived beside them.
        pairs_per_key: (keys,) pairs that arrived for each key.
        rows_sent: (G,) copies sent to each device, the own one included.
        metadata_bytes_sent: (G,) bytes sent beside them.
    """

    num_rows: int
    sent_row: Int[Tensor, " S"]
    exchange: Exchange
    travelling: Float[Tensor, "R D"]
    pairs: Pairs
    pairs_per_key: Int[Tensor, " keys"]
    rows_sent: Int[Tensor, " G"]
    metadata_bytes_sent: Int[Tensor, " G"]

    def receive(self) -> Float[Tensor, "R D"]:
        """The copies that arrived, sorted by source."""
        return self.exchange.wait(self.travelling)

    def give_back(self, y_RD: Float[Tensor, "R D"]) -> Float[Tensor, " rows D"]:
        """Send each copy's result back where it came from; a row's results are summed (rows, D)."""
        returned_SD = self.exchange.back(y_RD)
        return returned_SD.new_zeros(self.num_rows, y_RD.shape[1]).index_add(0, self.sent_row, returned_SD)


def start_hop(x_RD: Float[Tensor, " rows D"], pairs: Pairs, num_keys: int, group: dist.ProcessGroup) -> Hop:
    """Send each row once to every distinct device of its pairs.

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
    pairs_GK = torch.bincount(key, minlength=num_devices * num_keys).view(num_devices, num_keys)
    counts_sent = torch.cat([rows_sent_G[:, None], pairs_GK], 1)
    counts_received = exchange_counts(counts_sent, group)
    rows_out, rows_in, pairs_out, pairs_in = _splits(counts_sent, counts_received)
    sent_row = needs_GR.nonzero()[:, 1]
    of_rows = Exchange(rows_out, rows_in, group)
    of_weights, of_places = Exchange(pairs_out, pairs_in, group), Exchange(pairs_out, pairs_in, group)
    travelling = of_rows.start(x_RD[sent_row])
    place = (needs_GR.cumsum(1) - 1)[device, row].to(torch.int32)
    weight = pairs.weight[order]
    arrived = _arrived(of_places(place), counts_received, of_weights(weight))
    metadata = pairs_GK.sum(1) * (place.element_size() + weight.element_size()) + counts_sent[0].nbytes
    return Hop(num_rows, sent_row, of_rows, travelling, arrived, counts_received[:, 1:].sum(0), rows_sent_G, metadata)


def _splits(sent: Int[Tensor, "G n"], received: Int[Tensor, "G n"]) -> list[list[int]]:
    """Rows sent, rows received, pairs sent, pairs received by device: the one wait of the host for the device."""
    both = torch.stack([sent[:, 0], received[:, 0], sent[:, 1:].sum(1), received[:, 1:].sum(1)])
    return both.tolist()


def _arrived(place_P: Int[Tensor, " P"], counts_received: Int[Tensor, "G n"], weight_P: Float[Tensor, " P"]) -> Pairs:
    rows_G, pairs_GK = counts_received[:, 0], counts_received[:, 1:]
    num_devices, num_keys = pairs_GK.shape
    numbers = torch.arange(num_devices * num_keys, device=place_P.device)
    source_key_P = numbers.repeat_interleave(pairs_GK.reshape(-1), output_size=len(place_P))
    first_row_G = rows_G.cumsum(0) - rows_G
    return Pairs(place_P + first_row_G[source_key_P // num_keys], source_key_P % num_keys, weight_P)
