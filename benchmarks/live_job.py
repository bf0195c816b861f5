"""What the ranks of a live re-balancing are told beyond their steps, and what they tell.

job.json        as `benchmarks.step_job`: each rule is a variant with a model of its own; the last model is the pilot's
live.json       the rules, and what they plan with
past.npz        loads before the first step (S, L, E)
measured.npz    seconds a step (G, B, parts + 1) by rule, and NAME/FIELD (B,) for the other fields of `Lived`
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from benchmarks.step_job import read_measured
from models.callbacks.step_timer import PARTS
from traces.atomic import write_atomically, write_text_atomically

# what a block's steps are preceded by: forecast, plan and move
REBALANCE = "rebalance"
LIVE_PARTS = (*PARTS, REBALANCE)
# whose loads the oracle knows; its experts never move
PILOT = "pilot"
# how a rule decides
STAY = "stay"
RULES = (STAY, "last_value", "forecast", "if_it_pays", "oracle")
STARTS = PARENT, SCRATCH = ("parent", "scratch")


@dataclass(frozen=True, eq=False)
class Live:
    """What the rules of a live re-balancing decide with.

    Attributes:
        rules: by variant one of `RULES`.
        planners: configurations of conf/placement by the variants whose experts move.
        predictor: configuration of a predictor of conf/predictor.
        policy: arguments of `models.rebalancing.Rebalancing`.
        start: one of `STARTS`: with the trained run's weights and loads, or with new ones.
        history: steps of load that are kept for a forecast.
        past: loads of the steps before the first; none from scratch.

    Raises:
        ValueError: an unknown rule or start, or a history below 1.
    """

    rules: Mapping[str, str]
    planners: Mapping[str, Mapping[str, Any]]
    predictor: Mapping[str, Any]
    policy: Mapping[str, Any]
    start: str
    history: int
    past: Integer[np.ndarray, "S L E"]

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"live.start must be one of {', '.join(STARTS)}, got {self.start!r}")
        if unknown := set(self.rules.values()) - set(RULES):
            raise ValueError(f"rules must be among {', '.join(RULES)}, got {', '.join(sorted(unknown))}")
        if self.history < 1:
            raise ValueError(f"live.history must be at least 1, got {self.history}")


@dataclass(frozen=True, eq=False)
class Lived:
    """What all ranks measured of one rule, block by block.

    Attributes:
        seconds: a step, of each rank, block and part of `LIVE_PARTS`; a block's re-balancing is dealt to its steps.
        moved_bytes: that devices sent one another before the block.
        max_over_mean: busiest device's (token, expert) pairs over the mean, mean over steps and layers.
        rows_sent: that dispatch sends to other devices in a step, sum over layers and devices.
        busiest_rows: the most that one device sends or receives of them, sum over layers.
        loss: mean of the block's steps and the ranks.
    """

    seconds: Float[np.ndarray, "G B parts"]
    moved_bytes: Float[np.ndarray, " B"]
    max_over_mean: Float[np.ndarray, " B"]
    rows_sent: Float[np.ndarray, " B"]
    busiest_rows: Float[np.ndarray, " B"]
    loss: Float[np.ndarray, " B"]


NOTED = tuple(field.name for field in fields(Lived) if field.name != "seconds")


def write_live(folder: Path, live: Live) -> None:
    """Write what `read_live` reads."""
    write_atomically(folder / "past.npz", lambda file: np.savez_compressed(file, live.past))
    told = {key: value for key, value in asdict(live).items() if key != "past"}
    write_text_atomically(folder / "live.json", json.dumps(told, indent=1))


def read_live(folder: Path) -> Live:
    """Read what `write_live` wrote."""
    told = json.loads((folder / "live.json").read_text(encoding="utf-8"))
    with np.load(folder / "past.npz", allow_pickle=False) as archive:
        return Live(**told, past=archive["arr_0"])


def read_lived(folder: Path, live: Live) -> dict[str, Lived]:
    """What the ranks wrote, by rule."""
    told = read_measured(folder)
    return {
        name: Lived(seconds=told[name], **{field: told[f"{name}/{field}"] for field in NOTED}) for name in live.rules
    }
