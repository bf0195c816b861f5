"""The bootstrap against cases whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paired import TaskScore, correctness, paired_bootstrap, read_scores, write_scores


def arm(shape: tuple[int, int, int], share: float, seed: int = 0, tasks: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"task{number}": rng.random(shape) < share for number in range(tasks)}


def test_without_variance_the_interval_has_no_width() -> None:
    never, always = arm((3, 2, 50), 0.0, tasks=2), arm((3, 2, 50), 1.0, tasks=2)
    found = paired_bootstrap(never, always, seed=0)
    assert (found.low, found.mean, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.detectable == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_items_alone_give_the_binomial_error(share: float) -> None:
    second = arm((1, 1, 1000), share)
    found = paired_bootstrap(arm((1, 1, 1000), 0.0), second, seed=0, resamples=8000)
    mean = second["task0"].mean()
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(np.sqrt(mean * (1 - mean) / 1000), rel=0.05)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.05)
    assert found.detectable == pytest.approx(2.80 * found.standard_error, rel=1e-3)


def test_independent_tasks_average_out() -> None:
    one = paired_bootstrap(arm((1, 1, 500), 0.0), arm((1, 1, 500), 0.5), seed=0).standard_error
    four = paired_bootstrap(arm((1, 1, 500), 0.0, tasks=4), arm((1, 1, 500), 0.5, tasks=4), seed=0).standard_error
    assert four == pytest.approx(one / 2, rel=0.1)


def test_more_runs_on_the_same_items_do_not_hide_the_items_error() -> None:
    items = np.random.default_rng(0).random(400) < 0.5
    second = {"task0": np.broadcast_to(items, (4, 3, 400))}
    found = paired_bootstrap(arm((4, 3, 400), 0.0), second, seed=0, resamples=8000)
    # widened as if parents had a share in it, which is safe
    assert found.standard_error == pytest.approx(np.sqrt(4 / 3 * 0.25 / 400), rel=0.05)


@pytest.mark.parametrize(("parents", "continuations"), [(8, 1), (8, 3)])
def test_parents_alone_give_their_error(parents: int, continuations: int) -> None:
    """Half the parents gain on every item: the mean of P draws of 0 or 1, whatever the number of continuations."""
    better = np.zeros((parents, continuations, 20), dtype=bool)
    better[: parents // 2] = True
    found = paired_bootstrap(arm(better.shape, 0.0), {"task0": better}, seed=0, resamples=8000)
    gains = better[:, 0, 0].astype(float)
    assert found.standard_error == pytest.approx(gains.std(ddof=1) / np.sqrt(parents), rel=0.05)
    # the t interval and the power of a t test over parents
    assert found.high - found.mean == pytest.approx(2.365 * found.standard_error, rel=1e-3)
    assert found.detectable == pytest.approx((2.365 + 0.896) * found.standard_error, rel=1e-3)


def test_continuations_alone_give_their_error() -> None:
    better = np.zeros((5, 4, 20), dtype=bool)
    better[:, :2] = True
    found = paired_bootstrap(arm(better.shape, 0.0), {"task0": better}, seed=0, resamples=8000)
    assert found.standard_error == pytest.approx(np.sqrt(5 / 4 * 0.25 / (5 * 4)), rel=0.05)


@given(st.integers(0, 1000))
def test_swapping_the_arms_mirrors_the_difference(seed: int) -> None:
    first, second = arm((2, 2, 9), 0.4, seed, tasks=2), arm((2, 2, 9), 0.7, seed + 1, tasks=2)
    there, back = (paired_bootstrap(*arms, seed=3, resamples=50) for arms in ((first, second), (second, first)))
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_the_seed_decides() -> None:
    arms = arm((2, 2, 30), 0.4), arm((2, 2, 30), 0.6, 1)
    assert paired_bootstrap(*arms, seed=1) == paired_bootstrap(*arms, seed=1) != paired_bootstrap(*arms, seed=2)


@pytest.mark.parametrize("second", [arm((2, 2, 29), 0.5), arm((2, 2, 30), 0.5, tasks=2)])
def test_arms_that_were_not_measured_alike_are_refused(second: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="arms must share tasks"):
        paired_bootstrap(arm((2, 2, 30), 0.5), second, seed=0)


class TestCorrectness:
    def scores(self, fingerprint: str = "a", right: int = 0) -> dict[str, TaskScore]:
        return {"task": TaskScore(np.arange(3) == right, 0.25, fingerprint)}

    def test_stacks_by_parent_and_continuation(self) -> None:
        found = correctness([[self.scores(right=0), self.scores(right=1)], [self.scores(right=2)] * 2])
        assert found["task"].shape == (2, 2, 3)
        assert found["task"].argmax(-1).tolist() == [[0, 1], [2, 2]]

    def test_other_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"task: scores on different items cannot be paired: \['a', 'b'\]"):
            correctness([[self.scores("a")], [self.scores("b")]])

    def test_unequal_numbers_of_continuations_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"as many continuations, got \[2, 1\]"):
            correctness([[self.scores()] * 2, [self.scores()]])


def test_scores_are_read_back_as_they_were(tmp_path) -> None:
    scores = {"moelab_one": TaskScore(np.array([True, False]), 0.25, "abc")}
    write_scores(tmp_path / "items.npz", scores)
    (found,) = read_scores(tmp_path / "items.npz").items()
    assert found[0] == "moelab_one"
    assert found[1].correct.tolist() == [True, False]
    assert (found[1].chance, found[1].fingerprint) == (0.25, "abc")
