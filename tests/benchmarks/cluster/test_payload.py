"""What dispatchers say they sent is what the kernel saw on the wire."""

import numpy as np
import pytest

from benchmarks.all_to_all import exchange
from benchmarks.cluster.emulated import EmulatedCluster
from benchmarks.exchange_job import DISPATCHERS, Job, Variant
from placement.contiguous import contiguous
from placement.topology import Topology
from placement.volume import CommVolume

TOPOLOGY = Topology(2, 2, 1e9, 1e9, 1e-6, 1e-6)
NUM_TOKENS, EXPERTS = 512, 8


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
def test_payload_agrees_with_the_interfaces_counters(tmp_path) -> None:
    generator = np.random.default_rng(0)
    chosen = np.stack([generator.permuted(np.tile(np.arange(EXPERTS), (NUM_TOKENS, 1)), axis=1)[:, :3]])
    variants = {name: Variant("routing", "placement", name) for name in DISPATCHERS}
    placement = contiguous(np.ones((1, EXPERTS)), TOPOLOGY, slots_per_device=2)
    job = Job(TOPOLOGY, variants, {"routing": chosen}, {"placement": placement}, 512, 16, rounds=2, seed=0)
    with EmulatedCluster(2, 2, rate_bits_per_s=1e9) as ground:
        exchanged = exchange(job, ground, tmp_path, 240.0)
    for name in variants:
        found = exchanged[name]
        sent = CommVolume(found.rows * job.row_bytes + found.metadata, TOPOLOGY)
        payload = (sent + CommVolume(found.rows * job.row_bytes, TOPOLOGY).reverse).inter_node.sum()
        on_the_wire = found.wire.sum(1)
        # headers and acknowledgements come on top, and the barriers between
        assert (on_the_wire >= payload).all(), name
        assert (on_the_wire <= 1.06 * payload).all(), name
