"""Two arms answering the same items: how large is the difference, and how large would it have to be to be seen?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from traces.atomic import write_atomically

Correctness = Mapping[str, Bool[np.ndarray, "P C _"]]
"""Task -> (P, C, N) which items were answered right, by parent checkpoint, continuation of it, and item."""


@dataclass(frozen=True)
class TaskScore:
    """How a model did on one task.

    Attributes:
        correct: (N,) item by item, in the order of the items.
        chance: mean over items of 1 / number of choices.
        fingerprint: of the items; scores with equal fingerprints can be compared item by item.
    """

    correct: Bool[np.ndarray, " N"]
    chance: float
    fingerprint: str

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class PairedDifference:
    """Second arm's accuracy minus the first's, from 0 to 1, as the mean over tasks.

    Attributes:
        mean: over tasks, parents, continuations and items.
        low, high: 95 % t interval with P - 1 degrees of freedom: parents are few, and what is independent.
        standard_error: the bootstrap's standard deviation, widened by sqrt(P / (P - 1)), which parents lose in it.
        detectable: smallest true difference that this design finds with 80 % power at a two-sided 5 %.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    detectable: float


def write_scores(path: Path, scores: Mapping[str, TaskScore]) -> None:
    """Keep every item's correctness, whole or not at all."""
    fields: dict[str, Any] = {
        f"{task}/{name}": value for task, one in scores.items() for name, value in vars(one).items()
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **fields))


def read_scores(path: Path) -> dict[str, TaskScore]:
    """What `write_scores` kept."""
    with np.load(path, allow_pickle=False) as archive:
        tasks = dict.fromkeys(name.rsplit("/", 1)[0] for name in archive)
        return {
            task: TaskScore(
                archive[f"{task}/correct"], float(archive[f"{task}/chance"]), str(archive[f"{task}/fingerprint"])
            )
            for task in tasks
        }


def correctness(scores: Sequence[Sequence[Mapping[str, TaskScore]]]) -> dict[str, Bool[np.ndarray, "P C _"]]:
    """Scores by [parent][continuation] as one (P, C, N) array a task.

    Raises:
        ValueError: scores of other items, or parents with different numbers of continuations.
    """
    flat = [score for parent in scores for score in parent]
    if not flat or len({len(parent) for parent in scores}) > 1:
        raise ValueError(f"every parent needs as many continuations, got {[len(parent) for parent in scores]}")
    for task in flat[0]:
        if len(found := {score[task].fingerprint for score in flat}) > 1:
            raise ValueError(f"{task}: scores on different items cannot be paired: {sorted(found)}")
    return {task: np.array([[score[task].correct for score in parent] for parent in scores]) for task in flat[0]}


def paired_bootstrap(first: Correctness, second: Correctness, *, seed: int, resamples: int = 2000) -> PairedDifference:
    """Hierarchical bootstrap of the difference between two arms.

    Each resample draws parents, then continuations of each drawn parent, then each task's items, all with replacement;
    both arms are looked up in the same draw. Items are common to all parents and continuations, so a draw of items
    holds for all of them. One parent, or one continuation each, says nothing of how others would differ: the interval
    of one parent is the normal one over what else was drawn.

    Args:
        first, second: task -> (P, C, N) correctness of the same tasks, parents, continuations and items.
        seed: of the resampling.
        resamples: R.

    Raises:
        ValueError: arms that were not measured alike.
    """
    shapes = [{task: correct.shape for task, correct in arm.items()} for arm in (first, second)]
    if shapes[0] != shapes[1] or len({shape[:2] for shape in shapes[0].values()}) != 1:
        raise ValueError(f"arms must share tasks, parents, continuations and items, got {shapes[0]} and {shapes[1]}")
    rng = np.random.default_rng(seed)
    (num_parents, num_continuations), *_ = (shape[:2] for shape in shapes[0].values())
    runs_RPC = _draw_runs(rng, resamples, num_parents, num_continuations)
    values, means = np.zeros(resamples), []
    for task in first:
        difference = second[task].astype(float) - first[task].astype(float)
        means.append(difference.mean())
        num_items = difference.shape[2]
        items_RN = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=resamples) / num_items
        values += ((runs_RPC @ difference.reshape(-1, num_items)) * items_RN).sum(1) / len(first)
    error = float(values.std()) * np.sqrt(num_parents / max(num_parents - 1, 1))
    spread = stats.t(num_parents - 1) if num_parents > 1 else stats.norm
    two_sided, power = spread.ppf(0.975), spread.ppf(0.8)
    mean, half = float(np.mean(means)), float(two_sided * error)
    return PairedDifference(mean, mean - half, mean + half, float(error), float((two_sided + power) * error))


def _draw_runs(
    rng: np.random.Generator, resamples: int, num_parents: int, num_continuations: int
) -> Float[np.ndarray, "R runs"]:
    """(R, P C) share of each run in each resample: parents first, then continuations within each drawn parent."""
    parent = rng.integers(num_parents, size=(resamples, num_parents, 1))
    continuation = rng.integers(num_continuations, size=(resamples, num_parents, num_continuations))
    run = (parent * num_continuations + continuation).reshape(resamples, -1)
    shares = np.zeros((resamples, run.shape[1]))
    np.add.at(shares, (np.arange(resamples)[:, None], run), 1 / run.shape[1])
    return shares
