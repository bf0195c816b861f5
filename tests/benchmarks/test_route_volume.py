"""What an arm's routing must move, and to which cause a saving is credited."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.record import Record, write_records
from benchmarks.route_volume import add_balance, add_credit, add_quality, add_volume
from benchmarks.rows import Rows
from placement.contiguous import contiguous
from placement.topology import Placement, Topology
from traces.load import TraceSource
from traces.routing import RoutingTrace

TOPOLOGY = Topology(2, 2, 1e9, 1e8, 0.0, 0.0)
CONFIG = OmegaConf.create(
    {
        "experiment": "toy",
        "scale": "smoke",
        "setting": "micro8",
        "seed": 0,
    }
)
ROW_BYTES = 32
E, T = 8, 16


@pytest.fixture
def rows() -> Rows:
    return Rows(CONFIG, method="toy/contiguous", ground="trace")


def routing(chosen: np.ndarray) -> RoutingTrace:
    source = TraceSource("toy", "TopK", 0, T, chosen.shape[-1], "none", "0")
    devices = np.repeat(np.arange(4), T // 4)
    return RoutingTrace(np.arange(len(chosen)), chosen, devices, E, source)


def random_routing(seed: int = 0, num_steps: int = 3) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    return routing(rng.random((num_steps, 1, T, E)).argsort(-1)[..., :2])


def placed(trace: RoutingTrace) -> Placement:
    return contiguous(trace.loads()[0], TOPOLOGY, slots_per_device=2)


def values(rows: Rows) -> dict[str, float]:
    return {row.metric: row.value for row in rows.records if row.layer == "all"}


def test_volume_counts_what_a_walk_over_tokens_counts(rows: Rows):
    trace = random_routing()
    add_volume(rows, trace, placed(trace), TOPOLOGY, ROW_BYTES)
    home = np.arange(E) // 2
    remote = {"per_expert": 0, "per_device": 0}
    for chosen_TK in trace.expert_indices[:, 0]:
        for source, experts in zip(trace.source_device, chosen_TK, strict=True):
            devices = [home[expert] for expert in experts if home[expert] != source]
            remote["per_expert"] += len(devices)
            remote["per_device"] += len(set(devices))
    found = values(rows)
    for accounting, count in remote.items():
        assert found[f"copies/{accounting}"] == pytest.approx(count / (3 * T))
        # there and back
        assert found[f"bytes/{accounting}"] == pytest.approx(count / (3 * T) * 2 * ROW_BYTES)


def test_the_busiest_device_is_taken_batch_by_batch_and_exchange_by_exchange(rows: Rows):
    # in the first batch all want device 0, in the second all want device 3: on average both are half as busy
    trace = routing(np.stack([np.full((1, T, 1), 0), np.full((1, T, 1), E - 1)]))
    add_volume(rows, trace, placed(trace), TOPOLOGY, ROW_BYTES)
    found = values(rows)
    # the hot device gets 12 rows in dispatch and sends 12 in combine; each device holds 4 tokens
    assert found["busiest_device_bytes/per_device"] == pytest.approx(2 * 12 * ROW_BYTES / 4)
    assert found["busiest_device_ingress/per_device"] == pytest.approx(12 * ROW_BYTES / 4)
    assert found["busiest_device_egress/per_device"] == pytest.approx(4 * ROW_BYTES / 4)
    # both hot devices together: 12 in, and 4 out in the other batch, of 8 tokens
    assert found["busiest_device_bytes_overall/per_device"] == pytest.approx(2 * 12 * ROW_BYTES / 8)
    assert found["distinct_devices"] == 1.0


def test_balance_of_all_text_and_of_a_batch(rows: Rows):
    chosen = np.stack([np.full((1, T, 1), 0), np.full((1, T, 1), E - 1)])
    add_balance(rows, routing(np.concatenate([chosen, (chosen + 2) % E], axis=-1)), placed(routing(chosen)))
    found = values(rows)
    assert found["device_max_over_mean_per_batch"] == pytest.approx(2.0)
    assert found["device_max_over_mean"] == pytest.approx(2.0)
    assert found["expert_max_over_mean"] == pytest.approx(2.0)
    assert found["experts_per_token"] == 2.0


def test_savings_add_up_and_go_to_their_causes(rows: Rows):
    plain = random_routing()
    # the constrained router keeps each token's two experts on one device
    first = plain.expert_indices[..., :1] // 2 * 2
    limited = routing(np.concatenate([first, first + 1], axis=-1))
    places = {"topk": placed(plain), "limited": placed(plain)}
    add_credit(rows, {"topk": plain, "limited": limited}, places, "limited", TOPOLOGY)
    found = values(rows)
    parts = [found[f"saving/{cause}"] for cause in ("deduplication", "placement", "constraint")]
    assert sum(parts) == pytest.approx(found["saving/all"])
    assert found["saving/placement"] == 0.0
    assert found["saving/constraint"] > 0.2
    assert found["saving/deduplication"] > 0


def test_the_plain_router_constrains_nothing(rows: Rows):
    plain = random_routing()
    add_credit(rows, {"topk": plain}, {"topk": placed(plain)}, "topk", TOPOLOGY)
    assert values(rows)["saving/constraint"] == 0.0


def arm(folder: Path, loss: float, causal: float) -> Path:
    figures = {"held_out/all": loss, "bits_per_byte/all": loss / 2, "causal": causal}
    records = [Record("a", "smoke", "cpu", "s", 0, "r", metric, value, "c") for metric, value in figures.items()]
    write_records(folder / "records.csv", records)
    return folder


def test_quality_is_compared_with_the_plain_arm(rows: Rows, tmp_path: Path):
    add_quality(rows, arm(tmp_path / "mine", 3.5, 1.0), arm(tmp_path / "plain", 3.0, 1.0))
    found = values(rows)
    assert (found["held_out/all"], found["held_out_over_plain"]) == (3.5, 0.5)
    assert found["bits_per_byte_over_plain"] == 0.25


def test_a_router_that_sees_later_tokens_has_no_quality(rows: Rows, tmp_path: Path):
    add_quality(rows, arm(tmp_path / "mine", 1.0, 0.0), arm(tmp_path / "plain", 3.0, 1.0))
    found = values(rows)
    assert found["held_out/all/seeing_later_tokens"] == 1.0
    assert not {"held_out/all", "held_out_over_plain", "bits_per_byte_over_plain"} & found.keys()
