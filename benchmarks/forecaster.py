"""The predictor that a cell is about."""

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.recorded import read_run
from benchmarks.rows import Rows
from predictors.base import Predictor


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


def add_tuning(rows: Rows, predictor: Predictor) -> None:
    """Rows of what a predictor that tunes itself found for each candidate, on the run it was fitted on."""
    for candidate, total_variation in getattr(predictor, "validation", {}).items():
        rows.add("validation_total_variation", float(total_variation), method=f"{rows.method}: {candidate}")


def method_name() -> str:
    """The predictor's file name in conf/predictor."""
    return str(HydraConfig.get().runtime.choices["predictor"])
