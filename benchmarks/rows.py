"""Collects a cell's records: what all its rows share is said once."""

import numpy as np
from omegaconf import DictConfig

from benchmarks.record import Record


class Rows:
    """Rows of one cell; `ground` is what the figures were measured on."""

    def __init__(self, config: DictConfig, method: str = "-", ground: str = "cpu") -> None:
        self.config, self.method, self.ground = config, method, ground
        self.records: list[Record] = []

    def add(self, metric: str, value: float, *, method: str | None = None, **columns: object) -> None:
        """One row; a value that is not a number is left out, as nothing was measured."""
        if np.isnan(value):
            return
        config = self.config
        topology = config.get("topology")
        self.records.append(
            Record(
                experiment=config.experiment,
                scale=config.scale,
                ground=self.ground,
                setting=config.setting,
                seed=config.seed,
                method=self.method if method is None else method,
                metric=metric,
                value=float(value),
                cell="",
                topology=f"{topology.nodes}x{topology.devices_per_node}" if topology else "-",
                **columns,  # type: ignore[arg-type]
            )
        )

    def by_layer(self, metric: str, values_L: np.ndarray, **columns: object) -> None:
        """A row a layer, and their mean as layer "all"."""
        for layer, value in enumerate(values_L):
            self.add(metric, float(value), layer=str(layer), **columns)  # type: ignore[arg-type]
        if not np.isnan(values_L).all():
            self.add(metric, float(np.nanmean(values_L)), **columns)  # type: ignore[arg-type]


def mean_where(values: np.ndarray, counted: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis over the entries that count; NaN where none does."""
    number = np.broadcast_to(counted, values.shape).sum(axis)
    total = np.where(counted, values, 0.0).sum(axis)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
