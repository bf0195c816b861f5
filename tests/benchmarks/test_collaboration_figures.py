"""Figures of working together: the right matrix, small, and one line a layer."""

import re

import numpy as np
import pytest

from benchmarks.collaboration_figures import degree_figure, in_blocks, matrix_figure
from benchmarks.curves import Curve
from benchmarks.figures import draw_figures


def matrix(num_experts: int, layer: int = 0, setting: str = "nano16", seed: int = 0) -> list[Curve]:
    """Rows in falling order; expert i works with its neighbour i ^ 1 only, all columns in rising order."""
    columns = [float(expert) for expert in range(num_experts)]
    return [
        Curve(
            "collaboration",
            f"layer {layer}",
            f"expert {i}",
            columns,
            [float(j == i ^ 1) for j in range(num_experts)],
            setting,
            seed,
        )
        for i in reversed(range(num_experts))
    ]


def degrees(setting: str, seed: int, series: str, y: list[float | None]) -> Curve:
    return Curve("collaboration_degree", "all layers", series, np.linspace(0, 1, len(y)).tolist(), y, setting, seed)


def drawn_squares(svg: str) -> list[tuple[float, float]]:
    """Left upper corners of all shaded cells, top row first."""
    (body,) = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--method-0\)', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"M ([\d.]+) ([\d.]+)", body)]


def test_a_cell_is_shaded_where_row_and_column_meet():
    figure = matrix_figure(matrix(4))
    assert figure is not None
    (panel,) = figure.panels
    assert panel.title == "layer 0"
    corners = np.array(drawn_squares(panel.svg))
    assert len(corners) == 4
    # rows and columns both run 3, 2, 1, 0: partners stand beside the diagonal
    columns = np.searchsorted(np.unique(corners[:, 0]), corners[:, 0])
    rows = np.searchsorted(np.unique(corners[:, 1]), corners[:, 1])
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0, 2: 3, 3: 2}
    assert re.findall(r"<text[^>]*>(\d)</text>", panel.svg) == list("32103210")


def test_one_run_is_drawn():
    curves = [*matrix(4, setting="b"), *matrix(4, setting="a", seed=1), *matrix(4, layer=10), *matrix(4, layer=2)]
    figure = matrix_figure([*curves, *matrix(4, setting="a")])
    assert figure is not None
    assert figure.title.endswith("a, seed 0")
    assert len(figure.panels) == 1
    nano = matrix_figure(curves[8:])
    assert nano is not None
    assert [panel.title for panel in nano.panels] == ["layer 2", "layer 10"]


def test_caption_tells_the_fullest_and_the_even_share():
    figure = matrix_figure(matrix(6))
    assert figure is not None
    assert "the fullest is 100 %, an even share would be 20 %" in figure.caption
    assert "averaged" not in figure.caption


def test_a_large_model_stays_small():
    figure = matrix_figure([curve for layer in range(24) for curve in matrix(128, layer)])
    assert figure is not None
    assert len(figure.panels) == 6
    assert "128 experts are averaged" in figure.caption
    assert sum(len(panel.svg) for panel in figure.panels) < 300_000


@pytest.mark.parametrize("most", [2, 3, 7, 9])
def test_blocks_are_means(most):
    full = np.random.default_rng(0).random((7, 7))
    found = in_blocks(full, most)
    parts = np.array_split(np.arange(7), min(most, 7))
    expected = [[full[np.ix_(rows, columns)].mean() for columns in parts] for rows in parts]
    np.testing.assert_allclose(found, expected)


def test_degrees_have_a_panel_a_setting_and_a_line_a_layer():
    curves = [degrees(s, seed, f"layer {layer}", [0.2, 0.6]) for s in "ba" for seed in (0, 1) for layer in (10, 2)]
    curves += [degrees(s, 0, name, [0.9, 0.9]) for s in "ab" for name in ("threshold", "random partners")]
    figure = degree_figure(curves)
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["a", "b"]
    assert [key.label for key in figure.keys] == ["layer 2", "layer 10", "random partners", "threshold"]
    assert len({(key.colour, key.dash) for key in figure.keys}) == 4
    assert "Mean over 2 seeds" in figure.caption


def test_degrees_of_runs_with_other_numbers_of_experts_are_averaged():
    even = degree_figure([degrees("a", 0, "layer 0", [0.4, 0.6]), degrees("a", 1, "layer 0", [0.6, 0.7, 0.8])])
    same = degree_figure([degrees("a", 0, "layer 0", [0.5, 0.7]), degrees("a", 1, "layer 0", [0.5, 0.6, 0.7])])
    assert even is not None
    assert same is not None
    assert even.panels == same.panels


def test_the_report_draws_both_and_nothing_without_data():
    assert matrix_figure([]) is None
    assert degree_figure([]) is None
    figures = draw_figures([], [*matrix(4), degrees("a", 0, "layer 0", [0.4, 0.6])], [])
    assert [figure.name for figure in figures] == ["collaboration", "collaboration_degree"]
