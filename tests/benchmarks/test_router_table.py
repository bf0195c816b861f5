"""The table of routers: its order, its texts, and where it stands in the report."""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.record import Record, write_records
from benchmarks.report import render
from benchmarks.router_table import COLUMNS, interval_text, router_tables
from benchmarks.verdict import Interval, confidence_interval

LOSSES = {"good": 3.0, "plain": 3.1, "bad": 3.5}


def rows(method: str, seed: int, values: dict[str, float]) -> Iterator[Record]:
    for metric, value in values.items():
        yield Record("shootout", "full", "trace", "nano16", seed, method, metric, float(value), "c1")


def table_records(seeds: int = 3) -> Iterator[Record]:
    for seed in range(seeds):
        for name, loss in LOSSES.items():
            known = {
                "held_out/all": loss + 0.01 * seed,
                "causal": 1.0,
                "copies/per_device": 2.0,
                "bytes/per_node": 1234.0,
            }
            yield from rows(f"{name}/contiguous", seed, known)
        later = {"held_out/all/seeing_later_tokens": 2.5, "causal": 0.0, "copies/per_device": 2.0}
        yield from rows("later/contiguous", seed, later)
        yield from rows("profiled", seed, {"held_out/all": 1.0})


def cells(texts: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(COLUMNS, texts, strict=True))


def test_lowest_loss_comes_first_and_what_sees_later_tokens_last():
    (table,) = router_tables(list(table_records())).values()
    assert [row.method for row in table] == [f"{name}/contiguous" for name in ("good", "plain", "bad", "later")]
    assert [row.sees_later_tokens for row in table] == [False, False, False, True]


def test_a_row_tells_mean_and_half_interval_and_what_was_not_measured():
    (table,) = router_tables(list(table_records())).values()
    good, later = cells(table[0].texts), cells(table[-1].texts)
    assert good["held-out nats"] == "3.010 ± 0.025"
    assert good["bytes, one a node"] == "1,234 ± 0"
    assert good["above plain"] == "-"
    assert later["held-out nats"] == "2.500 ± 0"


def test_a_single_seed_has_no_interval():
    (table,) = router_tables(list(table_records(seeds=1))).values()
    assert cells(table[0].texts)["held-out nats"] == "3.000"


def test_other_experiments_have_no_such_table():
    assert router_tables(list(rows("lpt/sw_avg", 0, {"device_max_over_mean": 1.2}))) == {}


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (-0.0074161, 0.00193, "-0.0074 ± 0.0019"),
        (3.1001, 0.0251, "3.100 ± 0.025"),
        (1157.4, 55.2, "1,157 ± 55"),
        (1157.4, 255.2, "1,157 ± 255"),
        (2.0, 1e-12, "2.00000 ± 0.00000"),
        (1234.5678, math.nan, "1,235"),
    ],
)
def test_digits_end_where_the_interval_does(mean: float, half: float, text: str):
    assert interval_text(Interval(mean, mean - half, mean + half, math.nan, 3)) == text


def test_half_interval_is_the_t_interval():
    assert interval_text(confidence_interval([1.0, 2.0, 3.0])) == "2.0 ± 2.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_records(root / "shootout" / "records.csv", list(table_records()))
    (root / "experiment").mkdir()
    (root / "experiment" / "shootout.yaml").write_text("run: make reproduce EXPERIMENTS=shootout")
    render(root, root)
    return root


def test_the_page_has_the_table_before_all_figures(folder: Path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(page)
    assert page.index("Routers on nano16") < page.index("All figures of nano16")
    assert page.index("<th>good/contiguous</th>") < page.index("<th>later/contiguous †</th>")
    assert "† sees later tokens" in page
    assert '<div class="routers scroll">' in page


def test_markdown_has_it_too(folder: Path):
    lines = (folder / "REPORT.md").read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| router / placement |"))
    table = lines[head : head + 2 + len(LOSSES) + 1]
    assert {line.count("|") for line in table} == {len(COLUMNS) + 2}
    assert table[2].startswith("| good/contiguous | 3.010 ± 0.025 |")
    assert table[-1].startswith("| later/contiguous † |")
    assert lines[head - 1] == ""


def test_the_command_names_the_scale_of_the_records(folder: Path):
    for name in ("report.html", "REPORT.md"):
        assert "make reproduce SCALE=full EXPERIMENTS=shootout" in (folder / name).read_text(encoding="utf-8")
