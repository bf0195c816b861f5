"""The report of a results folder made up here: what must be on the page, and what must not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.figures import Curve, draw_figures, read_curves
from benchmarks.record import Cell, Record, write_cells, write_records
from benchmarks.record_figures import MOST_LINES, device_load_figure, forecast_figures, natural
from benchmarks.report import main, render
from benchmarks.results import read_results
from benchmarks.svg import embed, localise_ids, palette, share_styles, shorten
from benchmarks.tables import provenance, record_tables

FORECAST = """# @package _global_
title: How well loads are <forecast>
question: How large is the error?
run: python -m benchmarks.study experiment=forecast
hydra: {sweep: "${only.hydra.knows}"}
notes: ["The floor assumes independent tokens & nothing else."]
expect:
- {id: small, claim: "Errors | are small", source: "[P] abstract", published: "about 1 %", metric: relative_error,
   select: {method: sw_avg, horizon: 100, state: stable}, relation: at_most, target: 0.5, format: percent}
- {id: large, claim: "Errors are large", source: ours, metric: relative_error,
   select: {method: sw_avg, horizon: 100, state: stable}, relation: at_least, target: 0.5, format: percent}
- {id: paper, claim: "Errors are tiny", source: "[P] table I", published: "1 %", comparable: [paper],
   metric: relative_error, select: {method: sw_avg, horizon: 10, state: stable}, relation: at_most, target: 0.01}
- {id: absent, claim: "ARIMA is good", source: "[C] code", metric: relative_error, select: {method: arima},
   relation: at_most, target: 0.01}
"""


def record(experiment: str, metric: str, value: float, seed: int, **changes: object) -> Record:
    columns = {"experiment": experiment, "scale": "cpu", "ground": "cpu", "setting": "nano16", "method": "-"}
    return Record(**{**columns, "metric": metric, "value": float(value), "seed": seed, "cell": "c1", **changes})


def forecast_records() -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for seed in range(3):
        for method in ("sw_avg", "lstm"):
            for horizon in (10, 100):
                for state in ("transient", "stable"):
                    columns = {"method": method, "horizon": horizon, "state": state}
                    floors = {"floor": 0.03, "floor_empirical": 0.035}
                    value = 0.04 * rng.uniform(0.98, 1.02)
                    yield record("forecast", "relative_error", value, seed, **columns, **floors)


def states_records() -> Iterator[Record]:
    for seed in range(2):
        for layer in ("0", "1"):
            yield record("states", "stable_step", 100.0 + seed, seed, layer=layer)
            for method in ("w50_t0.01", "w50_t0.02", "w100_t0.01"):
                never = method == "w50_t0.01" or (method == "w100_t0.01" and layer == "1")
                value = -1.0 if never else 120.0
                yield record("states", "stable_step", value, seed, layer=layer, method=method)
        for method, value in (("contiguous", 1.4), ("lpt/sw_avg", 1.1), ("lower_bound", 1.05)):
            yield record("states", "device_max_over_mean", value + 0.01 * seed, seed, method=method)


def curve(figure: str, panel: str, series: str, seed: int = 0, points: int = 50) -> dict[str, object]:
    x = list(range(points))
    y: list[float | None] = [float(v) for v in 0.01 + np.exp(-np.arange(points) / 10)]
    y[3] = None
    columns = {"figure": figure, "panel": panel, "series": series, "setting": "nano16", "seed": seed}
    return {**columns, "x": x, "y": y}


def states_curves() -> Iterator[dict[str, object]]:
    for seed in range(2):
        for layer in ("layer 0", "layer 1"):
            for expert in range(4):
                yield curve("load_proportion", layer, f"expert {expert}", seed)
            for figure in ("variance_10", "variance_100", "range_100", "drift", "probe_drift"):
                yield curve(figure, "all layers", layer, seed)
        yield curve("error_over_training", "10 ahead", "sw_avg", seed)
        yield curve("loss", "", "train", seed)


def write_experiment(folder: Path, records: list[Record], curves: list[dict[str, object]]) -> None:
    write_records(folder / "records.csv", records)
    config = {"detector": {"window": 100, "enter": 0.02}}
    cells = [
        Cell(
            f"c{i}",
            folder.name,
            config,
            commit,
            {"numpy": "2.0"},
            "x86_64, 2 cores",
            "data7",
            3000.0,
            "",
            day,
        )
        for i, (commit, day) in enumerate([("abc", "2026-01-30"), ("abd+", "2026-02-02")])
    ]
    write_cells(folder / "cells.jsonl", cells)
    (folder / "curves").mkdir()
    (folder / "curves" / "c1.json").write_text(json.dumps({"curves": curves}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A rendered results folder and the configuration it was rendered with."""
    root, conf = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("conf")
    write_experiment(root / "forecast", list(forecast_records()), [])
    write_experiment(root / "states", list(states_records()), list(states_curves()))
    failed = {"cell": "nano16-arima", "command": "python -m benchmarks.x", "reason": "no statsforecast"}
    (root / "forecast" / "failed.jsonl").write_text(json.dumps(failed) + "\n")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "records.csv").write_text("not a table")
    (conf / "experiment").mkdir()
    (conf / "experiment" / "forecast.yaml").write_text(FORECAST)
    render(root, conf)
    return root, conf


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path]) -> str:
    return (folders[0] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(folders: tuple[Path, Path]) -> str:
    return (folders[0] / "REPORT.md").read_text(encoding="utf-8")


class TestPage:
    def test_is_well_formed_with_unique_ids(self, page: str):
        tree = ElementTree.fromstring(page)
        ids = [element.get("id") for element in tree.iter() if element.get("id")]
        assert len(ids) == len(set(ids))

    def test_links_and_references_lead_somewhere(self, page: str):
        tree = ElementTree.fromstring(page)
        ids = {element.get("id") for element in tree.iter()}
        targets = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
        assert targets
        assert targets <= ids

    def test_needs_nothing_but_itself(self, page: str):
        assert not re.findall(r'(?:src|href)="(?!#)', page)
        assert not re.findall(r"@import|url\((?!#)|<script|<link|<img", page)

    def test_is_small(self, page: str):
        assert len(page.encode()) < 3_000_000

    def test_has_all_four_verdicts(self, page: str):
        tally = page[page.index('class="tally"') : page.index("</ul>")]
        verdicts = ("✓ reproduced", "✗ not reproduced", "? undecided", "≠ not comparable at this scale")
        assert [f"<b>1</b> {verdict}" in tally for verdict in verdicts] == [True] * 4

    def test_prints_published_beside_measured(self, page: str):
        row = page[page.index("Errors | are small") :]
        row = row[: row.index("</tr>")]
        for text in (
            "about 1 %",
            'title="the paper\'s text">P<',
            "4.0",
            "claim holds if ≤ 50 %",
            "cpu",
            "reproduced",
        ):
            assert text.replace("'", "&#39;") in row

    def test_escapes_what_yaml_says(self, page: str):
        assert "How well loads are &lt;forecast&gt;" in page
        assert "independent tokens &amp; nothing else" in page

    def test_says_what_could_not_run(self, page: str):
        assert "could not run, because no statsforecast" in page
        assert "no records: metric=relative_error, method=arima" in page

    def test_says_where_records_come_from(self, page: str):
        for text in (
            "abc, abd with local changes",
            "2026-01-30 to 2026-02-02",
            "numpy 2.0",
            "x86_64, 2 cores",
        ):
            assert text in page

    def test_has_every_figure_that_has_data(self, page: str):
        figures = re.findall(r'<figure [^>]*id="([^"]+)"', page)
        assert figures == [
            "forecast-forecast_nano16",
            "states-load_proportion",
            "states-variance_10",
            "states-variance_100",
            "states-range_100",
            "states-drift",
            "states-probe_drift",
            "states-error_over_training",
            "states-loss",
            "states-device_load",
            "states-sensitivity",
        ]

    def test_says_what_a_picture_shows(self, page: str):
        pictures = re.findall(r"<svg [^>]*>\s*<title>[^<]+</title>", page)
        assert len(pictures) == page.count("<svg ")

    def test_draws_in_colours_of_either_mode(self, page: str):
        drawings = "".join(re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL))
        assert not re.findall(r"(?:fill|stroke): #", drawings + page[: page.index("</style>")])
        assert "prefers-color-scheme: dark" in page

    def test_an_experiment_without_yaml_shows_its_records(self, page: str):
        section = page[page.index('<section id="states"') :]
        assert "<h2>states</h2>" in section
        assert "lpt/sw_avg" in section


class TestMarkdown:
    def test_has_a_whole_verdict_table(self, markdown: str):
        lines = [line for line in markdown.splitlines() if line.startswith("| [")]
        assert len(lines) == 4
        cells = [re.split(r"(?<!\\)\|", line) for line in lines]
        assert {len(row) for row in cells} == {8}
        assert "Errors \\| are small" in lines[0]
        assert "✓ **reproduced**" in lines[0]

    def test_every_table_has_rows_as_wide_as_its_head(self, markdown: str):
        width = None
        for line in markdown.splitlines():
            if not line.startswith("|"):
                width = None
                continue
            columns = len(re.split(r"(?<!\\)\|", line))
            width = width or columns
            assert columns == width, line

    def test_says_what_could_not_run(self, markdown: str):
        assert "`nano16-arima` could not run, because no statsforecast" in markdown


class TestRendering:
    def test_same_files_give_same_bytes(self, folders: tuple[Path, Path], page: str, markdown: str):
        root, conf = folders
        render(root, conf)
        assert (root / "report.html").read_text(encoding="utf-8") == page
        assert (root / "REPORT.md").read_text(encoding="utf-8") == markdown

    def test_command_prints_verdicts(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
        root, conf = folders
        main([str(root), "--conf", str(conf)])
        printed = capsys.readouterr().out
        assert "✓ reproduced" in printed
        assert "about 1 % [P]" in printed

    def test_command_prints_one_line_where_nothing_is_comparable(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        write_experiment(tmp_path / "forecast", list(forecast_records()), [])
        (tmp_path / "experiment").mkdir()
        only_paper = FORECAST[: FORECAST.index("- {id: small")] + FORECAST[FORECAST.index("- {id: paper") :]
        only_paper = only_paper[: only_paper.index("- {id: absent")]
        (tmp_path / "experiment" / "forecast.yaml").write_text(only_paper)
        main([str(tmp_path), "--conf", str(tmp_path)])
        first, *_ = capsys.readouterr().out.splitlines()
        assert first == "≠ none of 1 claims is comparable at scale cpu"

    def test_command_tells_a_mistake_in_one_line(self, tmp_path: Path):
        with pytest.raises(SystemExit, match=r"error: .*absent: no such results folder"):
            main([str(tmp_path / "absent")])

    def test_an_empty_folder_is_a_report_too(self, tmp_path: Path):
        render(tmp_path, tmp_path)
        ElementTree.fromstring((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "no claims" in (tmp_path / "REPORT.md").read_text(encoding="utf-8")

    def test_only_failures_are_a_report_too(self, tmp_path: Path):
        (tmp_path / "forecast").mkdir()
        failed = {"cell": "all", "command": "python", "reason": "no disk"}
        (tmp_path / "forecast" / "failed.jsonl").write_text(json.dumps(failed))
        render(tmp_path, tmp_path)
        assert "no disk" in (tmp_path / "report.html").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("expect: [{id: x, colour: red}]", "colour"),
            ("- a", "mapping"),
            ("title: ${unknown}", "unknown"),
            ("a: [", "broken.yaml"),
        ],
    )
    def test_a_mistake_in_yaml_names_the_experiment(self, tmp_path: Path, text: str, named: str):
        write_records(tmp_path / "broken" / "records.csv", [])
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "broken.yaml").write_text(text)
        with pytest.raises(ValueError, match="broken") as error:
            render(tmp_path, tmp_path)
        assert named in str(error.value)
        assert not (tmp_path / "report.html").exists()

    def test_a_damaged_list_of_failures_is_named(self, tmp_path: Path):
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "failed.jsonl").write_text('{"cell": 1}')
        with pytest.raises(ValueError, match=r"failed\.jsonl"):
            read_results(tmp_path, tmp_path)


def loads_of_devices(num_methods: int) -> list[Record]:
    return [
        record("shootout", "device_max_over_mean", 1.0 + seed, seed, method=f"lpt/{method}", state=state, horizon=100)
        for method in range(num_methods)
        for seed in range(2)
        for state in ("transient", "all")
    ]


@pytest.mark.parametrize(("num_methods", "panels"), [(3, 2), (200, 1)])
def test_of_many_bars_those_of_all_steps_are_drawn(num_methods: int, panels: int):
    figure = device_load_figure(loads_of_devices(num_methods))
    assert figure is not None
    assert len(figure.panels) == panels
    assert "all" in figure.panels[-1].title


def test_errors_of_many_methods_stand_in_a_table_the_best_first():
    def error(rank: int, horizon: int) -> Record:
        value = 1.0 + rank if horizon == 500 else 40.0 - rank
        return Record("e", "full", "cpu", "nano16", 0, f"m{rank}", "total_variation", value, "c", horizon=horizon)

    rows = [error(rank, horizon) for rank in range(MOST_LINES + 1) for horizon in (100, 500)]
    (table,) = forecast_figures(rows)
    assert table.keys == ()
    texts = re.findall(r">(m\d+|\d+)</text>", table.panels[0].svg)
    assert [text for text in texts if text.startswith("m")] == [f"m{rank}" for rank in range(MOST_LINES + 1)]
    assert {"40", "1", str(MOST_LINES + 1)} <= set(texts)
    (lines,) = forecast_figures(rows[:4])
    assert [key.label for key in lines.keys] == ["m0", "m1"]


class TestFigures:
    def test_no_data_no_figures(self):
        assert draw_figures([], [], []) == []

    def test_a_paper_sized_figure_stays_small(self):
        curves = [
            Curve(
                "load_proportion",
                f"layer {layer}",
                f"expert {e}",
                [float(x) for x in range(400)],
                [0.01 * e] * 400,
                "big",
                0,
            )
            for layer in range(12)
            for e in range(128)
        ]
        (figure,) = draw_figures([], curves, [])
        assert len(figure.panels) == 12
        assert "32 of 128 experts" in figure.caption
        assert sum(len(panel.svg) for panel in figure.panels) < 600_000

    def test_layers_may_be_panels_or_series(self):
        by_series = [Curve("drift", "all layers", "layer 3", [1.0, 2.0], [0.1, 0.2], "s", 0)]
        by_panel = [Curve("drift", "layer 3", "all layers", [1.0, 2.0], [0.1, 0.2], "s", 0)]
        assert draw_figures([], by_series, []) == draw_figures([], by_panel, [])

    def test_drift_is_drawn_with_threshold_and_stable_step(self):
        curves = [Curve("drift", "all layers", "layer 0", [0.0, 100.0], [0.1, 0.01], "nano16", 0)]
        cells = [Cell("c", "e", {"detector": {"enter": 0.02}}, "", {}, "", "", 1.0, "")]
        plain, marked = draw_figures([], curves, []), draw_figures([], curves, cells)
        assert "threshold" in [key.label for key in marked[0].keys]
        assert "threshold" not in [key.label for key in plain[0].keys]
        stable = [
            record("e", "stable_step", 50.0, 0, layer="0"),
            record("e", "stable_step", -1.0, 1, layer="0"),
        ]
        assert draw_figures(stable, curves, cells)[0].panels != marked[0].panels

    def test_sensitivity_tells_layers_that_never_become_stable(self):
        (figure,) = draw_figures([r for r in states_records() if r.metric == "stable_step"], [], [])
        drawn = re.findall(r"<text[^>]*>([^<]+)</text>", figure.panels[0].svg)
        assert {"never", "120", "120 (50%)"} <= set(drawn)

    @pytest.mark.parametrize("text", ["[]", '{"curves": [{"figure": "x"}]}', "{"])
    def test_damaged_curves_are_named(self, tmp_path: Path, text: str):
        (tmp_path / "c1.json").write_text(text)
        with pytest.raises(ValueError, match=r"c1\.json"):
            read_curves(tmp_path)

    def test_curves_need_as_many_x_as_y(self, tmp_path: Path):
        one = {**curve("drift", "all layers", "layer 0"), "x": [1]}
        (tmp_path / "c1.json").write_text(json.dumps({"curves": [one]}))
        with pytest.raises(ValueError, match="x has 1 points and y 50"):
            read_curves(tmp_path)

    def test_numbers_sort_as_numbers(self):
        assert sorted(["layer 10", "layer 2", "all"], key=natural) == ["all", "layer 2", "layer 10"]

    def test_embedded_drawings_keep_only_ids_in_use_and_those_local(self):
        blue = palette("light")["--method-0"]
        svg = f'<svg viewBox="0 0 1 1"><g id="a"><path id="b" style="fill: {blue}"/><use href="#b"/></g></svg>'
        embedded = localise_ids(embed(svg, "a & b"), prefix="p7")
        assert 'id="a"' not in embedded
        assert "fill: var(--method-0)" in embedded
        assert "a &amp; b" in embedded
        assert '<path id="p7-0"' in embedded
        assert 'href="#p7-0"' in embedded

    def test_drawings_are_shortened(self):
        points = "".join(f"L {i}.123 2.99 " for i in range(60))
        grouped = '<g>\n<path d="M 0 1.999 L 2 3 \nL 4 5 z"/>\n</g>\n'
        grouped += '<path d="M 1.5 9 L 4 9 L 4 7.25 L 1.5 7.25 L 1.5 9 z"/>\n'
        mark = '<use xlink:href="#m" x="1.23456" y="2.34567"/>'
        body = f'<svg viewBox="0 0 1 1">{grouped}{mark}<path d="M 1.25 1 {points}"/></svg>'
        embedded = shorten(embed(body.replace("/>", ' transform="rotate(-0 1 2)"/>'), "marks"))
        assert '<path d="M 0 1.99 2 3 4 5 z"/>' in embedded
        assert '<path d="M 1.5 9 h 2.5 v -1.75 H 1.5 z"/>' in embedded
        assert "M 1.2 1 0.1 2.9 1.1 2.9 " in embedded
        assert '<use href="#m" x="1.23" y="2.34"/>' in embedded
        assert "<g>" not in embedded
        assert "rotate" not in embedded

    def test_groups_that_say_something_stay_whole(self):
        drawing = '<svg viewBox="0 0 1 1"><g>\n<g clip-path="u"/>\n<g/>\n<g id="a"><path d="M 0 0"/></g>\n</g></svg>'
        assert shorten(drawing).endswith('<g clip-path="u"/>\n<g id="a"><path d="M 0 0"/></g>\n</svg>')

    def test_a_page_says_once_how_a_mark_looks(self):
        drawing = '<svg viewBox="0 0 1 1"><use style="fill: red"/><use style="fill: blue"/></svg>'
        page = share_styles(f'<style>p {{}}\n</style><i style="color: red"></i>{drawing}{drawing}')
        assert page.startswith("<style>p {}\n.s0 { fill: red }\n.s1 { fill: blue }\n</style>")
        assert page.count('<use class="s0"/><use class="s1"/>') == 2
        assert '<i style="color: red">' in page


class TestTables:
    def test_mean_over_layers_hides_single_layers(self):
        rows = [
            record("e", "m", 1.0, 0),
            record("e", "m", 2.0, 0, layer="0"),
            record("e", "n", 3.0, 0, layer="0"),
        ]
        table = record_tables(rows)["nano16, cpu"]
        assert [(row.metric, row.layer, row.value) for row in table] == [
            ("m", "all", "1.000"),
            ("n", "0", "3.000"),
        ]

    def test_half_interval_over_seeds(self):
        (row,) = record_tables([record("e", "m", value, seed) for seed, value in enumerate((1, 2, 3))])["nano16, cpu"]
        assert (row.value, row.seeds) == ("2.000 ± 2.5", 3)

    def test_topologies_and_grounds_are_never_averaged(self):
        here = {"topology": "2x1", "ground": "loopback"}
        others = [{**here, "topology": "4x2"}, {**here, "ground": "nccl"}]
        rows = [record("e", "m", value, 0, **columns) for value, columns in enumerate([here, *others], start=1)]
        tables = {where: [row.value for row in table] for where, table in record_tables(rows).items()}
        assert tables == {
            "nano16 on 2x1 devices, loopback": ["1.000"],
            "nano16 on 2x1 devices, nccl": ["3.000"],
            "nano16 on 4x2 devices, loopback": ["2.000"],
        }

    def test_provenance_leaves_out_what_nobody_noted(self):
        assert provenance([], []) == []

    def test_provenance_shortens_long_lists(self):
        rows = [record("e", "m", 1.0, seed) for seed in range(9)]
        assert ("seeds", "0, 1, 2, 3, 4, 5 and 3 more") in provenance(rows, [])
