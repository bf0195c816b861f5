"""Panels of points and parted bars: what is drawn where."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.point_panels import (
    Dot,
    Mark,
    Part,
    Point,
    Stack,
    dot_panel,
    linear_within,
    scatter_panel,
    spread_limits,
    stack_panel,
)

BLUE = Mark("o", "--method-0")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def extents(svg: str, colour: str) -> list[tuple[float, float]]:
    """Left and right end of every bar in a colour."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\({colour}\)', svg)
    xs = [[float(x) for x in re.findall(r"[ML] (-?[\d.]+)", path)] for path in found]
    return [(min(one), max(one)) for one in xs]


def places(svg: str, colour: str) -> list[tuple[float, float]]:
    """Where the marks in a colour stand."""
    found = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\({colour}\)', svg)
    return [(float(x), float(y)) for x, y in found]


def point(label: str, x: float, y: float, half: float = np.nan) -> Point:
    return Point(label, x, y, half, half, BLUE)


def test_negative_parts_lie_left_of_zero_and_others_stack_to_the_right():
    stacks = [Stack("a", (30.0, 10.0, -20.0), "20 %"), Stack("b", (10.0, 5.0, 5.0), "20 ± 1 %")]
    parts = [Part("--method-0"), Part("--method-1"), Part("--method-2")]
    svg = stack_panel(stacks, parts, "%", limits=(-20.0, 40.0))
    (zero, end), _ = extents(svg, "--method-0")
    (start, far), _ = extents(svg, "--method-1")
    (left, right), (last, _) = extents(svg, "--method-2")
    assert start == pytest.approx(end, abs=0.02)
    assert right == pytest.approx(zero, abs=0.02)
    assert left < zero < end < far
    unit = (end - zero) / 30
    assert far - start == pytest.approx(10 * unit, abs=0.05)
    assert right - left == pytest.approx(20 * unit, abs=0.05)
    assert last == pytest.approx(zero + 15 * unit, abs=0.05)
    assert [text for text in texts(svg) if text in ("a", "b", "20 %", "20 ± 1 %")] == ["a", "b", "20 %", "20 ± 1 %"]


def test_dots_stand_in_their_rows_from_the_top():
    dots = [Dot(1.0, 3.0, 0.5, BLUE), Dot(0.0, 1.0, np.nan, BLUE)]
    (x_low, y_low), (x_high, y_high) = places(dot_panel(["first", "second"], dots, "bytes"), "--method-0")
    assert x_low > x_high
    assert y_low > y_high


def test_open_marks_have_no_ground():
    svg = dot_panel(["a"], [Dot(0.0, 1.0, np.nan, Mark("o", "--method-0", is_filled=False))], "bytes")
    assert not places(svg, "--method-0")
    assert re.search(r"fill-opacity: 0; stroke: var\(--method-0\)", svg)


def test_every_point_is_labelled_and_lower_left_is_less():
    points = [point("costly", 2.0, 0.1, 0.01), point("cheap", 1.0, 0.02), point("plain", 3.0, 0.0)]
    svg = scatter_panel(points, points, np.array([[1.0, 0.02], [3.0, 0.0]]), "copies", "nats")
    assert {"costly", "cheap", "plain", "copies", "nats"} <= set(texts(svg))
    costly, cheap, plain = places(svg, "--method-0")
    assert cheap[0] < costly[0] < plain[0]
    assert costly[1] < cheap[1] < plain[1]


def test_panels_of_a_setting_share_their_axes():
    one, other = point("one", 1.0, 0.1), point("other", 3.0, 0.4)
    first, second = (scatter_panel([mine], [one, other], np.empty((0, 2)), "x", "y") for mine in (one, other))
    both = places(scatter_panel([one, other], [one, other], np.empty((0, 2)), "x", "y"), "--method-0")
    assert [*places(first, "--method-0"), *places(second, "--method-0")] == both


def test_a_wide_spread_has_a_logarithmic_axis_with_zero_on_it():
    points = [point(f"r{i}", 1.0 + i, y) for i, y in enumerate((0.0, -0.004, 0.003, 0.005, 0.6))]
    drawn = texts(scatter_panel(points, points, np.empty((0, 2)), "x", "y"))
    assert {"0", "0.001", "0.01", "0.1"} <= set(drawn)


@pytest.mark.parametrize(
    ("values", "within"),
    [([0.0, 0.0], None), ([0.01, 0.02, 0.03], None), ([0.0, 0.002, -0.003, 0.004, 0.9], 0.001)],
)
def test_where_an_axis_is_linear(values: list[float], within: float | None):
    found = linear_within(np.array(values))
    assert found == (within if within is None else pytest.approx(within))


def test_limits_show_all_values_and_only_so_much_of_intervals():
    values, halves = np.array([1.0, 2.0]), np.array([np.nan, 50.0])
    low, high = spread_limits(values, halves, most_interval=0.2)
    assert low < 1.0
    assert 2.2 < high < 2.5
    low, high = spread_limits(np.array([3.0]), np.array([np.nan]), most_interval=0.2)
    assert low < 3.0 < high
