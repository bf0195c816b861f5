"""Where to write the labels of points so that none covers another: greedy, the most crowded point first."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# a label is tried ever farther from its point, in these directions; distances in points
DISTANCES = (4.0, 8.0, 13.0, 19.0, 26.0, 34.0, 44.0, 56.0, 70.0, 86.0)
NUM_DIRECTIONS = 16
# how far a label rather moves than that its line crosses another
DETOUR = 15.0
# a label farther away than this needs a line to its point
NEAR = 5.0
# half the side of what a mark keeps free, and the side of the boxes that a line is checked by
MARK, STRETCH = 3.0, 2.0
# how often all labels are placed
PASSES = 4
# points within this distance are in each other's way
CROWD = 40.0


def _directions() -> np.ndarray:
    """Unit vectors, to the right first."""
    angles = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    order = np.argsort(-np.cos(angles), kind="stable")
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)[order]


class _Place(NamedTuple):
    """A label's centre, its box (1, 4), and the boxes (N, 4) along the line to it, none where it is near."""

    centre: np.ndarray
    label: np.ndarray
    line: np.ndarray


def place_labels(
    points: Float[np.ndarray, "N 2"], sizes: Float[np.ndarray, "N 2"], area: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "N 2"]:
    """Centres of labels with these widths and heights, inside (0, 0) to `area`; all in one unit, printer's points.

    A label takes a near place at which it and the line to its point meet little, above all no other label and no mark.
    All are placed anew a few times, as others may have made room.
    """
    marks = boxes(points, np.full((len(points), 2), 2 * MARK))
    places: dict[int, _Place] = {}
    for _ in range(PASSES):
        for index in _most_crowded_first(points):
            others = [place for other, place in places.items() if other != index]
            in_the_way = _InTheWay(marks, index, others, area)
            places[index] = _best(points[index], sizes[index], in_the_way)
    return np.array([places[index].centre for index in range(len(points))]).reshape(-1, 2)


def boxes(centres: Float[np.ndarray, "N 2"], sizes: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 4"]:
    """Left, bottom, right and top of boxes around centres."""
    return np.hstack([centres - sizes / 2, centres + sizes / 2])


def overlaps(one: Float[np.ndarray, "N 4"], other: Float[np.ndarray, "M 4"]) -> Bool[np.ndarray, "N M"]:
    """Which boxes of the one list share some area with which of the other."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    return np.all(low < high, axis=-1)


def needs_line(point: Float[np.ndarray, " 2"], centre: Float[np.ndarray, " 2"], size: Float[np.ndarray, " 2"]) -> bool:
    """Whether a label lies so far from its point that only a line tells whose it is."""
    return float(np.linalg.norm(np.maximum(np.abs(point - centre) - size / 2, 0))) > NEAR


class _InTheWay:
    """What a label and its line should not meet: marks, the other labels and their lines, the end of the area."""

    def __init__(self, marks: np.ndarray, index: int, others: list[_Place], area: np.ndarray) -> None:
        self.texts = np.vstack([np.delete(marks, index, axis=0), *(place.label for place in others)])
        # a line may leave from its own mark, a label must not cover it
        self.own = marks[index : index + 1]
        self.lines = np.vstack([np.empty((0, 4)), *(place.line for place in others)])
        self.area = area

    def met(self, place: _Place) -> int:
        """How bad a place is, 0 for free: text on text is far worse than a line across something."""
        is_outside = bool((place.label[0, :2] < 0).any() or (place.label[0, 2:] > self.area).any())
        covered = int(overlaps(place.label, self.texts).sum() + overlaps(place.label, self.own).sum())
        struck = int(overlaps(place.label, self.lines).sum() + overlaps(place.line, self.texts).any(0).sum())
        crossed = int(overlaps(place.line, self.lines).any(0).sum())
        return 1000 * is_outside + 100 * covered + 2 * struck + crossed


def _best(point: np.ndarray, size: np.ndarray, in_the_way: _InTheWay) -> _Place:
    """The place with the least of distance and what it meets, by their weights."""
    least, best = np.inf, None
    for distance in DISTANCES:
        if distance >= least:
            break
        for offset in _directions() * (size / 2 + distance):
            place = _place(point, point + offset, size)
            score = distance + DETOUR * in_the_way.met(place)
            if score < least:
                least, best = score, place
    assert best is not None, "every place has a finite score"
    return best


def _most_crowded_first(points: Float[np.ndarray, "N 2"]) -> list[int]:
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return [int(i) for i in np.argsort(-(distances < CROWD).sum(1), kind="stable")]


def _place(point: np.ndarray, centre: np.ndarray, size: np.ndarray) -> _Place:
    label = boxes(centre[None], size[None])
    if not needs_line(point, centre, size):
        return _Place(centre, label, np.empty((0, 4)))
    end = np.clip(point, label[0, :2], label[0, 2:])
    length = np.linalg.norm(end - point)
    line = point + np.arange(MARK, length, STRETCH)[:, None] * (end - point) / length
    return _Place(centre, label, boxes(line, np.full_like(line, STRETCH)))
