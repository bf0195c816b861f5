"""Commit-ready results: python -m benchmarks.publish SCALE [EXPERIMENT ...]

Copies finished experiments from outputs/SCALE/report/ to results/ and writes the report there anew. Each
experiment's folder is replaced whole; the others stay as they are.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.report import CONF, render
from benchmarks.results import experiment_folders, read_experiment, read_results


def publish(
    source: Path, results: Path, names: list[str], scale: str, conf: Path = CONF, allow_failed: bool = False
) -> list[str]:
    """Replace the named experiments' folders in `results` by those in `source`; all if none is named.

    Returns:
        The names of what was published.

    Raises:
        ValueError: an experiment has no records, failed cells, records of another scale or an unreadable
            file; `results` is untouched then.
    """
    names = names or [folder.name for folder in experiment_folders(source)]
    for name in names:
        _check(source / name, conf, scale, allow_failed)
    # what is published already must be readable too, or the report could not be written
    if results.is_dir():
        read_results(results, conf)
    for name in names:
        replace_folder(source / name, results / name)
    render(results, conf)
    return names


def replace_folder(source: Path, target: Path) -> None:
    """Copy a folder over another: a reader sees the old one or the new one, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # hidden and beside the target: the same file system, and no reader's glob finds it
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        fresh, old = Path(name) / "fresh", Path(name) / "old"
        shutil.copytree(source, fresh)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description="Copy finished results.")
    parser.add_argument("scale", help="which outputs/SCALE/report")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all that are there")
    parser.add_argument("--allow-failed", action="store_true", help="publish although cells could not run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--conf", type=Path, default=CONF, help="folder of experiment/NAME.yaml")
    options = parser.parse_args(arguments)
    source = options.outputs / options.scale / "report"
    try:
        names = publish(source, options.results, options.experiments, options.scale, options.conf, options.allow_failed)
    except ValueError as error:
        raise SystemExit(f"error: {error}; {options.results} is as it was") from error
    print(f"published {', '.join(names)}: {options.results / 'report.html'}")


def _check(folder: Path, conf: Path, scale: str, allow_failed: bool) -> None:
    experiment = read_experiment(folder, conf)
    if not experiment.records:
        raise ValueError(f"{folder}: no records")
    if scales := {record.scale for record in experiment.records} - {scale}:
        raise ValueError(f"{folder}: records of scale {', '.join(sorted(scales))}, not {scale}")
    if experiment.failed and not allow_failed:
        cells = "; ".join(f"{cell.cell}: {cell.reason}" for cell in experiment.failed)
        raise ValueError(f"{folder}: {len(experiment.failed)} cells could not run ({cells}); see --allow-failed")


if __name__ == "__main__":
    main()
