"""Write a results folder's report: python -m benchmarks.report [ROOT]

ROOT/report.html is one file that needs nothing else; ROOT/REPORT.md holds its tables. Everything in them
comes from the records and from the experiments' YAML files.
"""

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.figures import draw_figures
from benchmarks.panels import Figure
from benchmarks.results import Experiment, read_results
from benchmarks.router_table import COLUMNS, RouterRow, router_tables
from benchmarks.svg import localise_ids, palette_css, share_styles, shorten
from benchmarks.tables import MOST_ROWS, SIGNS, ClaimRow, RecordRow, claim_rows, provenance, record_tables
from benchmarks.verdict import NOT_COMPARABLE
from traces.atomic import write_text_atomically

HERE = Path(__file__).resolve().parent
CONF = HERE.parent / "conf"
MAKE = "make reproduce"
MARKS = {
    "P": "the paper's text",
    "C": "its authors' code",
    "M": "measured by us on published data, or by simulation",
    "I": "inferred by us",
    "2nd": "others' summary of it",
    "?": "not found by us",
    "ours": "not in a paper, asked by us",
}


@dataclass(frozen=True)
class Section:
    """What the page prints of one experiment."""

    experiment: Experiment
    claims: list[ClaimRow]
    figures: list[Figure]
    routers: dict[str, list[RouterRow]]
    tables: dict[str, list[RecordRow]]
    num_left_out: int
    provenance: list[tuple[str, str]]
    run: str


def render(root: Path, conf: Path = CONF) -> None:
    """Write ROOT/report.html and ROOT/REPORT.md; the same files give the same bytes.

    Raises:
        ValueError: a file cannot be read or an `expect:` item makes no sense; nothing is written then.
    """
    write(root, [section(experiment) for experiment in read_results(root, conf)])


def section(experiment: Experiment) -> Section:
    """Judge, draw and tabulate one experiment."""
    tables = record_tables(experiment.records)
    share = MOST_ROWS // max(len(tables), 1)
    return Section(
        experiment=experiment,
        claims=claim_rows(experiment),
        figures=draw_figures(experiment.records, experiment.curves, experiment.cells),
        routers=router_tables(experiment.records),
        tables={setting: rows[:share] for setting, rows in tables.items()},
        num_left_out=sum(max(len(rows) - share, 0) for rows in tables.values()),
        provenance=provenance(experiment.records, experiment.cells),
        run=command_at_scale(experiment),
    )


def command_at_scale(experiment: Experiment) -> str:
    """The command that measures an experiment again, at the scale of its records."""
    scales = sorted({record.scale for record in experiment.records})
    return experiment.run.replace(MAKE, f"{MAKE} SCALE={scales[0]}") if scales else experiment.run


def write(root: Path, sections: list[Section]) -> None:
    """Fill the two templates."""
    claims = [claim for one in sections for claim in one.claims]
    context = {
        "sections": sections,
        "claims": claims,
        "tally": _tally(claims),
        "router_columns": list(COLUMNS),
        "provenance": provenance(
            [record for one in sections for record in one.experiment.records],
            [cell for one in sections for cell in one.experiment.cells],
        ),
        "marks": {mark: text for mark, text in MARKS.items() if mark in {claim.mark for claim in claims}},
        "palette": {mode: Markup(palette_css(mode)) for mode in ("light", "dark")},
    }
    files = FileSystemLoader(HERE / "templates")
    page = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    text = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    numbers = itertools.count()
    page.filters["svg"] = lambda svg: Markup(localise_ids(shorten(svg), prefix=f"d{next(numbers)}"))
    html = share_styles(page.get_template("report.html.j2").render(context))
    write_text_atomically(root / "report.html", html + "\n")
    write_text_atomically(root / "REPORT.md", text.get_template("report.md.j2").render(context) + "\n")


def print_verdicts(sections: list[Section], console: Console) -> None:
    """The verdict table, in the terminal; one line where the scale allows no verdict at all."""
    claims = [claim for one in sections for claim in one.claims]
    if claims and all(claim.verdict == NOT_COMPARABLE for claim in claims):
        scales = ", ".join(sorted({claim.scale for claim in claims} - {"-"}))
        console.print(Text(f"{SIGNS[NOT_COMPARABLE]} none of {len(claims)} claims is comparable at scale {scales}"))
        return
    table = Table(box=SIMPLE, show_lines=True, padding=(0, 1, 0, 0))
    widths = {"claim": 4, "published": 2, "measured [95 % interval]": 4, "scale": 0, "seeds": 0, "verdict": 4}
    for name, ratio in widths.items():
        table.add_column(Text(name), ratio=ratio or None, no_wrap=not ratio)
    for claim in claims:
        measured = "\n".join(f"{one.setting}: {one.measured}" for one in claim.settings)
        verdict = f"{claim.sign} {claim.verdict}" + (f"\n{claim.reason}" if claim.reason else "")
        cells = (
            claim.claim,
            f"{claim.published} [{claim.mark}]",
            measured or "-",
            claim.scale,
            claim.seeds,
            verdict,
        )
        # Text: square brackets are intervals here, not markup
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Command line: render and print the verdicts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Write a results folder's report.")
    parser.add_argument("root", nargs="?", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--conf", type=Path, default=CONF, help="folder of experiment/NAME.yaml")
    options = parser.parse_args(arguments)
    try:
        sections = [section(experiment) for experiment in read_results(options.root, options.conf)]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    write(options.root, sections)
    print_verdicts(sections, Console())
    print(f"wrote {options.root / 'report.html'} and {options.root / 'REPORT.md'}")


def _tally(claims: list[ClaimRow]) -> dict[str, int]:
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in SIGNS}
    return {f"{SIGNS[verdict]} {verdict}": count for verdict, count in counts.items() if count}


if __name__ == "__main__":
    main()
