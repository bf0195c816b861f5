"""What forecasting and placement share: the predictor that a cell is about, and the state of a layer at an origin."""

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.recorded import read_run
from benchmarks.rows import Rows
from predictors.base import Predictor
from predictors.states import detect_states
from traces.load import LoadTrace


def build_predictor(config: DictConfig) -> Predictor:
    """The configured predictor; one that learns is fitted on the sister run, never on the run it is tested on."""
    predictor = instantiate(config.predictor)
    if hasattr(predictor, "fit"):
        if config.trace.path is not None or config.num_seeds < 2:
            raise ValueError(
                f"{type(predictor).__name__} is trained on another run: it needs trace.setting and num_seeds >= 2, got "
                f"trace.path={config.trace.path}, num_seeds={config.num_seeds}"
            )
        predictor.fit([read_run(config, (config.seed + 1) % config.num_seeds)])
    return predictor


def origins_by_state(config: DictConfig, trace: LoadTrace, cutoffs: np.ndarray) -> dict[str, np.ndarray]:
    """For each state, which (origin, layer) pairs (O, L) were in it as far as was known at the origin.

    Origins at which the detector cannot have judged anything yet belong to neither.
    """
    states = detect_states(trace.proportion, **config.detector)
    judged_O1 = (cutoffs - 1 >= states.first_judged)[:, None]
    stable_OL = states.stable[cutoffs - 1]
    return {"transient": judged_O1 & ~stable_OL, "stable": judged_O1 & stable_OL}


def add_tuning(rows: Rows, predictor: Predictor) -> None:
    """Rows of what a predictor that tunes itself found for each candidate, on the run it was fitted on."""
    for candidate, total_variation in getattr(predictor, "validation", {}).items():
        rows.add("validation_total_variation", float(total_variation), method=f"{rows.method}: {candidate}")


def method_name() -> str:
    """The predictor's file name in conf/predictor."""
    return str(HydraConfig.get().runtime.choices["predictor"])
