"""Where to write the labels of points so that none covers another: greedy, the most crowded point first."""

import numpy as np
from jaxtyping import Bool, Float

# a label is tried ever farther from its point, in these directions; distances in points
DISTANCES = (4.0, 8.0, 13.0, 19.0, 26.0, 34.0, 44.0, 56.0, 70.0, 86.0)
NUM_DIRECTIONS = 16
# a label farther away than this needs a line to its point
NEAR = 5.0
# half the side of what a mark, and of what a stretch of such a line, keeps free
MARK, STRETCH = 3.0, 0.7
# points within this distance are in each other's way
CROWD = 40.0


def place_labels(
    points: Float[np.ndarray, "N 2"], sizes: Float[np.ndarray, "N 2"], area: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "N 2"]:
    """Centres of labels with these widths and heights, inside (0, 0) to `area`; all in one unit, printer's points.

    A label takes the nearest place at which it and the line to its point meet no mark, no label and no other line;
    where there is none, the place that meets the fewest.
    """
    marks = boxes(points, np.full((len(points), 2), 2 * MARK))
    centres = np.zeros_like(points)
    taken = np.empty((0, 4))
    for index in _most_crowded_first(points):
        others = np.vstack([np.delete(marks, index, axis=0), taken])
        found = [_covered(candidate, points[index], sizes[index], area) for candidate in _around(sizes[index])]
        met = [int(overlaps(one, others).any(1).sum()) + len(points) * is_outside for _, one, is_outside in found]
        centres[index], mine, _ = found[int(np.argmin(met))]
        # its own mark may touch its own label
        taken = np.vstack([taken, mine])
    return centres


def boxes(centres: Float[np.ndarray, "N 2"], sizes: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 4"]:
    """Left, bottom, right and top of boxes around centres."""
    return np.hstack([centres - sizes / 2, centres + sizes / 2])


def overlaps(one: Float[np.ndarray, "N 4"], other: Float[np.ndarray, "M 4"]) -> Bool[np.ndarray, "N M"]:
    """Which boxes of the one list share some area with which of the other."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    return (low < high).all(-1)


def needs_line(point: Float[np.ndarray, " 2"], centre: Float[np.ndarray, " 2"], size: Float[np.ndarray, " 2"]) -> bool:
    """Whether a label lies so far from its point that only a line tells whose it is."""
    return float(np.linalg.norm(np.maximum(np.abs(point - centre) - size / 2, 0))) > NEAR


def _most_crowded_first(points: Float[np.ndarray, "N 2"]) -> list[int]:
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return [int(i) for i in np.argsort(-(distances < CROWD).sum(1), kind="stable")]


def _around(size: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "N 2"]:
    """Offsets of a label from its point, near ones first, to the right first."""
    angles = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    order = np.argsort(-np.cos(angles), kind="stable")
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)[order]
    return np.concatenate([directions * (size / 2 + distance) for distance in DISTANCES])


def _covered(
    offset: Float[np.ndarray, " 2"],
    point: Float[np.ndarray, " 2"],
    size: Float[np.ndarray, " 2"],
    area: Float[np.ndarray, " 2"],
) -> tuple[np.ndarray, np.ndarray, bool]:
    """A label's centre, the boxes that it and the line to it cover, and whether it leaves the area."""
    centre = point + offset
    label = boxes(centre[None], size[None])
    is_outside = bool((label[0, :2] < 0).any() or (label[0, 2:] > area).any())
    if not needs_line(point, centre, size):
        return centre, label, is_outside
    end = np.clip(point, label[0, :2], label[0, 2:])
    steps = np.arange(MARK, np.linalg.norm(end - point), 2 * STRETCH) / np.linalg.norm(end - point)
    line = point + steps[:, None] * (end - point)
    return centre, np.vstack([label, boxes(line, np.full_like(line, 2 * STRETCH))]), is_outside
