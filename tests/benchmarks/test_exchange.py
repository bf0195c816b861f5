"""Exchange measurements: jobs on disk, calibrations, credit, and what real ranks measure."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.all_to_all import exchange, stacked
from benchmarks.cluster.ground import Loopback
from benchmarks.exchange_cost import (
    SHARES,
    calibration,
    fit_costs,
    predicted_seconds,
    round_trip,
    seconds_of,
    smallest_bytes,
    volume,
)
from benchmarks.exchange_job import DISPATCHERS, Exchanged, Job, Variant, read_job, write_job
from benchmarks.exchange_rank import COMPUTED
from benchmarks.exchange_rows import add_costs, add_credit, add_exchange, per_round
from benchmarks.rows import Rows
from placement.cost import CostModel
from placement.topology import Placement, Topology
from placement.volume import CommVolume, per_device, per_expert

TOPOLOGY = Topology(2, 2, 1e9, 1e9, 1e-6, 1e-6)
NUM_TOKENS, LAYERS, EXPERTS = 32, 2, 8


@pytest.fixture
def job():
    generator = np.random.default_rng(0)
    chosen = np.stack([generator.permuted(np.arange(EXPERTS)[None].repeat(NUM_TOKENS, 0), axis=1)[:, :3] for _ in "ab"])
    contiguous = Placement(np.arange(EXPERTS).reshape(1, 4, 2).repeat(LAYERS, 0))
    variants = {
        f"topk/contiguous/{dispatcher}": Variant("topk", "topk.contiguous", dispatcher) for dispatcher in DISPATCHERS
    }
    synthetic = calibration(TOPOLOGY, NUM_TOKENS)
    return Job(
        TOPOLOGY,
        variants | synthetic.variants,
        {"topk": chosen} | synthetic.routings,
        {"topk.contiguous": contiguous} | synthetic.placements,
        width=16,
        hidden=16,
        rounds=2,
        seed=0,
    )


def measured(job, seconds):
    """Made-up measurements: every variant's exchange takes `seconds(name)` in each layer and round."""
    found = {}
    for name, variant in job.variants.items():
        shape = (job.rounds, len(job.routings[variant.routing]))
        half = np.broadcast_to(seconds(name) / 2, shape)
        rows = sum(stage.bytes for stage in round_trip(job, name)[: len(round_trip(job, name)) // 2]) // job.row_bytes
        found[name] = Exchanged(half, half, np.full((3, shape[1]), 0.5), rows, 0 * rows, np.zeros((2, 2), int))
    return found


@pytest.fixture
def rows():
    return Rows(OmegaConf.create({"experiment": "e", "scale": "smoke", "setting": "micro8", "seed": 0}), ground="here")


def value(rows, metric, method):
    (row,) = [row for row in rows.records if (row.metric, row.method) == (metric, method)]
    return row.value


def test_a_job_survives_the_disk(job, tmp_path):
    write_job(tmp_path, job)
    found = read_job(tmp_path)
    assert (found.topology, found.variants, found.width, found.rounds) == (TOPOLOGY, job.variants, 16, 2)
    for name, chosen in job.routings.items():
        np.testing.assert_array_equal(found.routings[name], chosen)
    for name, placement in job.placements.items():
        np.testing.assert_array_equal(found.placements[name].slots, placement.slots)


def test_tokens_that_cannot_be_dealt_evenly_are_refused(job):
    odd = Job(TOPOLOGY, job.variants, {"topk": job.routings["topk"][:, :30]}, job.placements, 16, 16, 2, 0)
    with pytest.raises(ValueError, match="30 tokens cannot be dealt evenly to 4 devices"):
        odd.starts("topk")


@pytest.mark.parametrize("topology", [TOPOLOGY, Topology(3, 1, 1.0, 1.0, 0.0, 0.0), Topology(1, 4, 1.0, 1.0, 0.0, 0.0)])
def test_a_calibration_uses_one_kind_of_link_evenly(topology):
    synthetic = calibration(topology, 24 * topology.num_devices)
    job = Job(topology, synthetic.variants, synthetic.routings, synthetic.placements, 4, 4, 1, 0)
    assert len(synthetic.routings) == (topology.nodes > 1) + (topology.devices_per_node > 1)
    for name in synthetic.variants:
        sent = volume(job, name, per_expert)
        between = "between" in name
        assert (sent.local == 0).all()
        assert ((sent.intra_node if between else sent.inter_node) == 0).all()
        np.testing.assert_array_equal(sent.bytes.sum(-1), np.outer(SHARES, np.full(topology.num_devices, 24 * 16)))
        np.testing.assert_array_equal(sent.busiest_device_ingress, sent.busiest_device_egress)


def test_costs_are_found_again_from_made_up_seconds(job):
    def seconds(name):
        there = round_trip(job, name)
        busiest = [np.maximum(one.busiest_node_egress, one.busiest_node_ingress) for one in there]
        inside = [np.maximum(one.busiest_device_egress, one.busiest_device_ingress) for one in there]
        return sum(1e-3 + np.where(a > 0, 1e-6 * a, 1e-8 * b) for a, b in zip(busiest, inside, strict=True))

    exchanged = measured(job, seconds)
    costs = fit_costs(job, exchanged)
    for name in job.variants:
        if not job.variants[name].computes:
            np.testing.assert_allclose(predicted_seconds(job, name, costs), seconds_of(exchanged[name]), rtol=1e-6)
    assert costs["per_device"].seconds_per_byte_between_nodes == pytest.approx(1e-6)


def test_batches_are_stacked_device_by_device():
    batches, tokens = 2, 8
    # a choice that tells its batch, layer and token
    indices = np.arange(3 * LAYERS * tokens).reshape(3, LAYERS, tokens, 1)
    found = stacked(indices, OmegaConf.create({"exchange": {"batches": batches}}), TOPOLOGY)
    assert found.shape == (LAYERS, batches * tokens, 1)
    of_second_device = found[1, 4:8, 0]
    np.testing.assert_array_equal(of_second_device, [*indices[0, 1, 2:4, 0], *indices[1, 1, 2:4, 0]])
    with pytest.raises(ValueError, match=r"exchange.batches = 9, the arms recorded 3"):
        stacked(indices, OmegaConf.create({"exchange": {"batches": 9}}), TOPOLOGY)


def test_causes_add_up_to_the_whole_saving(job, rows):
    seconds = {"per_expert": 1.0, "per_device": 0.8, "per_node": 0.5}
    exchanged = measured(job, lambda name: seconds[name.rsplit("/", 1)[1]])
    add_credit(rows, job, exchanged)
    where = "topk/contiguous"
    assert value(rows, "seconds_saving/deduplication", where) == pytest.approx(0.2)
    assert value(rows, "seconds_saving/placement", where) == value(rows, "seconds_saving/constraint", where) == 0
    assert value(rows, "seconds_saving/hierarchy", where) == pytest.approx(0.3)
    assert value(rows, "seconds_saving/all", where) == pytest.approx(0.5)


def test_what_the_cost_models_hold_is_recorded(job, rows):
    add_costs(rows, {"per_device": CostModel(1e-3, 2e-6, 3e-8)}, smallest_bytes(job))
    assert value(rows, "cost/seconds_per_exchange", "per_device") == 1e-3
    assert value(rows, "cost/seconds_per_byte_between_nodes", "per_device") == 2e-6
    assert value(rows, "cost/seconds_per_byte_inside_node", "per_device") == 3e-8
    # of the smallest share, to other nodes: one device's rows are half a node's
    inside = volume(job, "calibration-inside/per_expert", per_expert)
    assert value(rows, "cost/smallest_bytes", "per_device") == inside.busiest_device_egress.min() > 0


def test_rows_that_differ_from_the_volume_are_refused(job, rows):
    exchanged = measured(job, lambda name: 1.0)
    name = "topk/contiguous/per_device"
    exchanged[name].rows[0, 1, 2] += 1
    with pytest.raises(AssertionError, match="rows sent differ"):
        add_exchange(rows, job, exchanged, name, name)


def test_real_ranks_send_what_the_volume_says(job, rows, tmp_path):
    with Loopback(2, 2) as ground:
        exchanged = exchange(job, ground, tmp_path, 120.0)
    baseline = "topk/contiguous/per_expert"
    for name in job.variants:
        assert per_round(exchanged[name]).shape == (job.rounds,)
        assert (exchanged[name].dispatch > 0).all()
    for name in [name for name, variant in job.variants.items() if variant.computes]:
        # add_exchange itself compares rows with the volume
        add_exchange(rows, job, exchanged, name, baseline)
        assert exchanged[name].compute.shape == (min(job.rounds, COMPUTED), LAYERS)
        assert (exchanged[name].compute > 0).all()
    assert value(rows, "exchange_over_baseline", baseline) == 1.0
    sent = volume(job, "topk/contiguous/per_device", per_device)
    both = CommVolume(sent.bytes, TOPOLOGY) + sent.reverse
    found = value(rows, "inter_node_bytes", "topk/contiguous/per_device")
    # what travels beside the rows is counted too
    assert both.inter_node.sum() < found < 1.5 * both.inter_node.sum()
