"""What a router costs or gains in quality against the plain one: the same parents, tokens, data order and test items.

python -m benchmarks.compare_quality trace.setting=nano16 trace.scale=full router=variant/c2r_t8

Differences are the router's minus the plain arm's, paired by parent and continuation. Rows carry the parent's seed, its
continuations averaged: parents are what is independent. `accuracy_difference` is over all parents, with a bootstrap
interval over parents, continuations and items, and has seed -1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from benchmarks.arms import (
    PLAIN,
    arm_config,
    arm_folder,
    read_quality,
    refuse_overrides,
    seeds_of,
    short_name,
    with_arms,
)
from benchmarks.cell import Measurement, plain_choices, run_cell, user_errors
from benchmarks.paired import correctness, paired_bootstrap, read_scores
from benchmarks.record import Record, read_cell
from benchmarks.rows import Rows

QUALITY = ("held_out/", "bits_per_byte/", "accuracy")


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Read both arms of every parent and continuation; difference by parent, bootstrap over all."""
    choices = plain_choices(HydraConfig.get().runtime.choices)
    router = choices["router"]
    folders = {name: arm_folders(config, choices, name) for name in (router, PLAIN)}
    records = []
    for seed, mine, plain in zip(seeds_of(config), folders[router], folders[PLAIN], strict=True):
        records += parent_rows(config, seed, short_name(router), mine, plain)
    rows = Rows(config, method=short_name(router))
    if config.arm.num_items:
        add_bootstrap(rows, config, folders[router], folders[PLAIN])
    return Measurement(records + rows.records, data_fingerprint=read_cell(folders[PLAIN][0][0]).data_fingerprint)


def arm_folders(config: DictConfig, choices: Mapping[str, str], router: str) -> list[list[Path]]:
    """An arm's folders by parent and continuation."""
    return [
        [arm_folder(arm_config(config, choices, router, seed, c), router, choices) for c in config.arm.continuations]
        for seed in seeds_of(config)
    ]


def parent_rows(config: DictConfig, seed: int, method: str, mine: list[Path], plain: list[Path]) -> list[Record]:
    """Means over a parent's continuations: of the router's arm, and of its difference to the plain arm."""
    with open_dict(config):
        of_parent = config.copy()
        of_parent.seed = seed
    rows = Rows(of_parent, method=method)
    ours, theirs = ([_quality(folder) for folder in folders] for folders in (mine, plain))
    chance = {row.metric: row.floor for row in read_quality(mine[0]) if row.metric.startswith("accuracy")}
    columns: dict[str, Any] = {"horizon": config.arm.steps, "count": len(mine)}
    for metric in ours[0]:
        values = np.array([one[metric] for one in ours])
        differences = values - np.array([one[metric] for one in theirs])
        rows.add(metric, float(values.mean()), floor=chance.get(metric, np.nan), **columns)
        rows.add(f"{metric}/over_plain", float(differences.mean()), **columns)
    return rows.records


def add_bootstrap(rows: Rows, config: DictConfig, mine: list[list[Path]], plain: list[list[Path]]) -> None:
    """Mean difference of accuracy over the tasks, its interval, and the smallest one that could have been seen."""
    found = paired_bootstrap(_items(plain), _items(mine), **config.bootstrap)
    columns: dict[str, Any] = {"horizon": config.arm.steps, "count": len(mine) * len(mine[0])}
    for name in ("mean", "low", "high", "detectable"):
        rows.add(f"accuracy_difference/{name}", float(getattr(found, name)), **columns)


def _quality(folder: Path) -> dict[str, float]:
    """An arm's quality by metric.

    Raises:
        ValueError: its router sees later tokens.
    """
    if any(row.metric == "causal" and not row.value for row in read_quality(folder)):
        raise ValueError(f"{folder.name}: its router looks at later tokens, so its losses are no measure of quality")
    return {row.metric: row.value for row in read_quality(folder) if row.metric.startswith(QUALITY)}


def _items(folders: list[list[Path]]) -> dict[str, np.ndarray]:
    """Correctness by task (P, C, N); ValueError where arms were given other items."""
    return correctness([[read_scores(folder / "items.npz") for folder in parent] for parent in folders])


@hydra.main(config_path="../conf", config_name="compare_quality", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        choices = plain_choices(HydraConfig.get().runtime.choices)
        refuse_overrides(config, choices)
        labels = [config.setting, short_name(choices["router"]), f"{config.arm.steps}steps"]
        run_cell(with_arms(config, choices), labels, measure)


if __name__ == "__main__":
    main()
