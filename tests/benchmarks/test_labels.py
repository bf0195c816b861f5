"""Labels of points: apart from one another wherever there is room, inside the panel, near their point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.labels import boxes, needs_line, overlaps, place_labels

AREA = np.array([270.0, 260.0])


def slow_overlaps(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two boxes share some area, side by side on neither axis."""
    beside = one[2] <= other[0] or other[2] <= one[0]
    above = one[3] <= other[1] or other[3] <= one[1]
    return not (beside or above)


@given(st.integers(0, 2**32 - 1))
def test_overlaps_equals_the_obvious(seed: int):
    rng = np.random.default_rng(seed)
    # whole numbers: boxes that only touch occur too
    one, other = (boxes(rng.integers(0, 9, (n, 2)) * 1.0, rng.integers(1, 5, (n, 2)) * 2.0) for n in (4, 5))
    expected = [[slow_overlaps(a, b) for b in other] for a in one]
    np.testing.assert_array_equal(overlaps(one, other), expected)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_labels_cover_neither_each_other_nor_marks(seed: int):
    rng = np.random.default_rng(seed)
    points = 15 + rng.uniform(0, 1, (12, 2)) * (AREA - 40)
    sizes = np.stack([rng.uniform(20, 60, 12), np.full(12, 8.0)], axis=1)
    centres = place_labels(points, sizes, AREA)
    labels = boxes(centres, sizes)
    assert not (overlaps(labels, labels) & ~np.eye(12, dtype=bool)).any()
    assert not overlaps(labels, boxes(points, np.full((12, 2), 5.0))).any()
    assert (labels[:, :2] >= 0).all()
    assert (labels[:, 2:] <= AREA).all()


@pytest.mark.parametrize("distance", [0.0, 3.0])
def test_points_on_one_spot_get_labels_apart(distance: float):
    points = np.full((8, 2), 120.0) + distance * np.arange(8)[:, None]
    sizes = np.tile([50.0, 8.0], (8, 1))
    labels = boxes(place_labels(points, sizes, AREA), sizes)
    assert not (overlaps(labels, labels) & ~np.eye(8, dtype=bool)).any()


def test_a_point_alone_is_labelled_on_its_right_without_a_line():
    point, size = np.array([[100.0, 100.0]]), np.array([[40.0, 8.0]])
    centre = place_labels(point, size, AREA)
    np.testing.assert_allclose(centre, [[124.0, 100.0]])
    assert not needs_line(point[0], centre[0], size[0])
    assert needs_line(point[0], centre[0] + 10, size[0])


def test_at_the_right_edge_a_label_goes_elsewhere():
    point, size = np.array([[268.0, 100.0]]), np.array([[40.0, 8.0]])
    assert place_labels(point, size, AREA)[0, 0] <= 250.0


def test_where_there_is_no_room_every_point_still_has_a_label():
    centres = place_labels(np.full((6, 2), 10.0), np.tile([15.0, 8.0], (6, 1)), np.array([20.0, 20.0]))
    assert centres.shape == (6, 2)
    assert np.isfinite(centres).all()


def test_no_points_no_labels():
    assert place_labels(np.empty((0, 2)), np.empty((0, 2)), AREA).shape == (0, 2)
