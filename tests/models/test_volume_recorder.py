"""What four gloo processes count while they train is what the recorded routing says, to the byte."""

import numpy as np
import pytest
from train_cases import LAYERS, SLOTS

from models.callbacks.volume import VolumeRecorder, scalars
from placement.topology import Placement, Topology
from placement.volume import ACCOUNTINGS, CommVolume, dispatch_volume
from traces.store import read_loads, read_routings

TOPOLOGY = Topology(2, 2, 1e9, 1e9, 1e-6, 1e-6)
PLACEMENTS = {"per_expert": "scattered", "per_device": "replicas", "per_node": "replicas"}
ROW_BYTES = 16 * 4
TOKENS_OF_RANK = 2 * 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp("ranks")
    cases = [{"dispatcher": dispatcher, "placement": placement} for dispatcher, placement in PLACEMENTS.items()]
    run_ranks("volume_cases.py", 4, folder, cases)
    return folder


@pytest.mark.parametrize("accounting", ACCOUNTINGS, ids=lambda accounting: accounting.__name__)
class TestFourRanks:
    def test_counted_bytes_are_those_of_the_recorded_routing(self, trained, accounting):
        routing = read_routings(trained / accounting.__name__)
        placement = Placement(np.array([SLOTS[PLACEMENTS[accounting.__name__]][4]] * LAYERS))
        expected = dispatch_volume(routing, placement, TOPOLOGY, ROW_BYTES, accounting)
        with np.load(trained / f"{accounting.__name__}.npz") as counted:
            np.testing.assert_array_equal(counted["bytes"], expected.bytes)
            np.testing.assert_array_equal(counted["rows"] * ROW_BYTES, expected.bytes)
            assert (counted["metadata_bytes"].sum((0, 1)) > 0).all()

    def test_routing_of_every_rank_is_sampled(self, trained, accounting):
        routing, loads = (read(trained / accounting.__name__) for read in (read_routings, read_loads))
        np.testing.assert_array_equal(routing.source_device, np.repeat(np.arange(4), TOKENS_OF_RANK))
        np.testing.assert_array_equal(routing.loads(), loads.tokens)


class TestOneProcess:
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_all_micro_batches_of_a_logged_step_count(self, fit, accumulate):
        recorder = VolumeRecorder(Topology(1, 1, 1e9, 1e9, 0.0, 0.0), every=4)
        trainer, _ = fit([recorder], accumulate=accumulate)
        pairs = accumulate * 4 * 8 * 2
        assert recorder.latest["rows"].local.tolist() == [pairs, pairs]
        assert recorder.latest["bytes"].local.tolist() == [pairs * ROW_BYTES] * 2
        assert recorder.latest["metadata_bytes"].bytes.sum() == 0
        assert float(trainer.logged_metrics["volume/rows/local/layer_1"]) == pairs

    def test_every_zero_steps_is_named(self):
        with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
            VolumeRecorder(TOPOLOGY, every=0)

    def test_scalars_are_totals_by_link_and_layer(self):
        sent = np.arange(32).reshape(2, 4, 4)
        found = scalars({"rows": CommVolume(sent, TOPOLOGY)})
        assert found["volume/rows/local/layer_0"] == 0 + 5 + 10 + 15
        assert found["volume/rows/intra_node/layer_1"] == (17 + 20) + (27 + 30)
        assert sum(found.values()) == sent.sum()
