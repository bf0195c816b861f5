"""Collects the series that a cell gives to the report's figures, thinned to what a figure can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig


@dataclass(frozen=True)
class Curve:
    """One series of one run as the report reads it; `y` may hold None."""

    figure: str
    panel: str
    series: str
    x: list[float]
    y: list[float | None]
    setting: str
    seed: int


def first_run(curves: Sequence[Curve]) -> tuple[str, int, dict[str, list[Curve]]]:
    """Setting and seed of the first run, and its curves by panel: experts of several runs have no common order."""
    setting, seed = min((curve.setting, curve.seed) for curve in curves)
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        if (curve.setting, curve.seed) == (setting, seed):
            panels.setdefault(curve.panel, []).append(curve)
    return setting, seed, panels


class Curves:
    """Series of one cell, as benchmarks/report.py reads them."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.series: list[dict[str, Any]] = []

    def add(self, figure: str, panel: str, series: str, x: np.ndarray, y: np.ndarray, points: int = 150) -> None:
        """One line; more than `points` values are averaged in blocks, so a thinned line hides no level."""
        self.series.append(
            {
                "figure": figure,
                "panel": panel,
                "series": series,
                "x": [float(f"{value:.6g}") for value in thin(np.asarray(x, float), points)],
                "y": [float(f"{value:.3g}") for value in thin(np.asarray(y, float), points)],
                "setting": self.config.setting,
                "seed": self.config.seed,
            }
        )

    def by_layer(self, figure: str, x: np.ndarray, values_SL: np.ndarray) -> None:
        """One line a layer."""
        for layer in range(values_SL.shape[1]):
            self.add(figure, "all layers", f"layer {layer}", x, values_SL[:, layer])


def thin(values: np.ndarray, points: int) -> np.ndarray:
    """Means of at most `points` blocks of neighbours."""
    if len(values) <= points:
        return values
    return np.array([block.mean() for block in np.array_split(values, points)])
