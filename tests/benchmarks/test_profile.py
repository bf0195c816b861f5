"""`python -m benchmarks.profile` on a toy run, and the parts of which its figures are made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cell import compose
from benchmarks.curves import Curves
from benchmarks.figures import parse_curves
from benchmarks.profile import add_degrees, add_matrices, list_lengths, route_profile, seriate
from benchmarks.record import read_records
from benchmarks.recorded import training_config, training_folder
from benchmarks.rows import Rows
from benchmarks.trained import read_parent
from traces.collaboration import list_coverage, top_lists


def overrides(outputs: Path) -> list[str]:
    return [
        "trace.setting=micro8",
        "trace.scale=smoke",
        f"outputs={outputs}",
        "profile.batches=4",
    ]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, keep_run) -> Path:
    """Where the toy's training run is kept."""
    outputs = tmp_path_factory.mktemp("outputs")
    folder = training_folder(compose("profile", overrides(outputs)), 0)
    keep_run(training_config("micro8", 0, "smoke", str(outputs)), folder)
    torch.save({"state_dict": {}, "shape": {}}, folder / "checkpoints" / "step=60.ckpt")
    return outputs


def test_profiles_a_finished_run(run_module, outputs):
    done = run_module("profile", *overrides(outputs), "logger=csv")
    assert done.returncode == 0, done.stderr
    (folder,) = outputs.glob("smoke/profile/*")
    with np.load(folder / "profile.npz", allow_pickle=False) as profile:
        collaboration, loads, transitions = (profile[name] for name in ("collaboration", "loads", "transitions"))
    tokens = 4 * 8 * 32
    # top-2: every token adds one pair, two choices, and four paths from layer to layer
    assert collaboration.shape == (2, 8, 8)
    assert collaboration.sum((1, 2)).tolist() == [2 * tokens] * 2
    np.testing.assert_array_equal(collaboration.sum(2), loads)
    assert transitions.shape == (1, 8, 8)
    np.testing.assert_array_equal(transitions.sum(2)[0], 2 * loads[0])
    assert top_lists(collaboration, 2).shape == (2, 8, 2)
    rows = {(r.metric, r.method): r.value for r in read_records(folder / "records.csv") if r.layer == "all"}
    coverage = [rows["top_t_coverage", f"t{top_t}"] for top_t in (1, 2, 4)]
    assert coverage == pytest.approx(list_coverage(collaboration).mean(0)[[0, 1, 3]], rel=1e-4)
    assert 0 < rows["collaboration_degree_p10", "-"] < rows["collaboration_degree", "-"] < 1
    assert rows["expert_max_over_mean", "-"] == pytest.approx((loads.max(1) / loads.mean(1)).mean(), rel=1e-4)


def test_the_newest_weights_are_read(outputs):
    module, data = read_parent(compose("profile", overrides(outputs)))
    expected = torch.load(next(outputs.rglob("step=240.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    assert data.sequence_length == module.decoder.sequence_length


def test_text_depends_on_the_profile_seed_only(outputs):
    def routed(*changes: str) -> np.ndarray:
        trace, ground = route_profile(compose("profile", [*overrides(outputs), *changes]))
        assert ground == "cpu"
        return trace.expert_indices

    first = routed()
    np.testing.assert_array_equal(first, routed())
    np.testing.assert_array_equal(first[:2], routed("profile.batches=2"))
    assert not np.array_equal(first, routed("profile.seed=1"))
    assert not np.array_equal(first, routed("profile.text=held_out"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["trace.seed=7"], r"no finished run .* benchmarks.train setting=micro8 seed=7 scale=smoke"),
        (["profile.text=web"], "text='web' is neither held_out nor train"),
        (["profile.batches=0"], "num_batches=0: at least 1"),
    ],
)
def test_what_cannot_be_profiled_is_named(outputs, changes, said):
    with pytest.raises(ValueError, match=said):
        route_profile(compose("profile", [*overrides(outputs), *changes]))


def test_a_model_whose_tokens_have_one_expert_has_no_partners(outputs, keep_run, tmp_path):
    keep_run(compose("train", ["setting=micro8", "router.top_k=1", f"outputs={outputs}"]), tmp_path / "run")
    with pytest.raises(ValueError, match="micro8 has top_k = 1: experts have no partners"):
        route_profile(compose("profile", [*overrides(outputs), f"trace.run={tmp_path / 'run'}"]))


@pytest.fixture
def toy(outputs) -> tuple[Rows, Curves]:
    config = compose("profile", overrides(outputs))
    return Rows(config), Curves(config)


def test_experts_above_the_threshold_are_counted_among_the_active(toy):
    rows, curves = toy
    # 0-3 work with one another alike, 4 and 5 with each other only, 6 with none
    counts = np.zeros((1, 7, 7), int)
    counts[0, :4, :4] = 5 * (1 - np.eye(4, dtype=int))
    counts[0, 4, 5] = counts[0, 5, 4] = 15
    add_degrees(rows, curves, counts, counts.sum(2), threshold=0.5)
    values = {row.metric: row.value for row in rows.records if row.layer == "0"}
    evenly = np.log(3) / np.log(6)
    assert values["collaboration_degree"] == pytest.approx(evenly * 4 / 6)
    assert values["overly_collaborative_share"] == pytest.approx(4 / 6)
    assert values["never_active_share"] == pytest.approx(1 / 7)
    # equal loads, and nobody to draw among the dead: an even split over five
    assert values["collaboration_degree_random"] == pytest.approx(np.log(5) / np.log(6))
    (drawn,) = [curve for curve in curves.series if curve["series"] == "layer 0"]
    np.testing.assert_allclose(drawn["y"], [0, 0, *[evenly] * 4], atol=1e-3)


def test_a_list_spares_top_k_and_is_shorter_than_all():
    assert list_lengths(2, 16) == [1, 2, 4, 8]
    assert list_lengths(4, 32) == [3, 4, 8, 16]
    assert list_lengths(2, 3) == [1]


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_seriation_finds_groups(pairs, seed):
    partner_of = np.arange(2 * pairs) ^ 1
    order = np.random.default_rng(seed).permutation(2 * pairs)
    counts = np.ones((2 * pairs, 2 * pairs), int)
    counts[np.arange(2 * pairs), partner_of] = 50
    np.fill_diagonal(counts, 0)
    found = order[seriate(counts[order][:, order])]
    assert sorted(found) == list(range(2 * pairs))
    assert (found[1::2] == partner_of[found[::2]]).all()


def test_a_matrix_is_written_row_by_row(toy):
    _, curves = toy
    counts = np.triu(np.random.default_rng(0).integers(0, 9, (1, 5, 5)), 1)
    counts += counts.transpose(0, 2, 1)
    add_matrices(curves, counts)
    rows = parse_curves(curves.series)
    assert {(row.figure, row.panel) for row in rows} == {("collaboration", "layer 0")}
    for row in rows:
        expert = int(row.series.removeprefix("expert "))
        expected = [counts[0, expert, int(column)] / counts[0, expert].sum() for column in row.x]
        np.testing.assert_allclose(np.array(row.y, float), expected, atol=1e-3)
