"""A rank of `benchmarks.step_rank` that also keeps its weights: `python step_weights.py FOLDER BACKEND`."""

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks import step_rank

gathered = step_rank.gathered


def keep(steps, device):
    weights = {name: parameter.detach().numpy() for name, parameter in steps.named_parameters()}
    np.savez(Path(sys.argv[1]) / f"weights-{os.environ['RANK']}.npz", **weights)
    return gathered(steps, device)


if __name__ == "__main__":
    step_rank.gathered = keep
    step_rank.main(Path(sys.argv[1]), sys.argv[2])
