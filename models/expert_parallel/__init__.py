"""Expert parallelism in Lightning: experts live where a Placement says, everything else is data-parallel."""

from models.expert_parallel.strategy import ExpertParallelStrategy

__all__ = ["ExpertParallelStrategy"]
