"""The routing trace: which experts each token of a sampled step was sent to."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from traces.load import TraceSource


@dataclass(frozen=True, eq=False)
class ExpertSets:
    """The distinct top-K sets of one layer and how often each occurred (exact for any K).

    Attributes:
        experts: (M, K) sorted expert numbers; -1 where a token had fewer than K experts.
        count: (M,) tokens that chose the set.
        source: (M,) device on which these tokens start, so that a set occurs once for each; None where nothing is told
            of that, and tokens are taken to start evenly on all devices.
    """

    experts: Integer[np.ndarray, "M K"]
    count: Int[np.ndarray, " M"]
    source: Integer[np.ndarray, " M"] | None = None

    @property
    def num_choices(self) -> int:
        """(token, expert) pairs."""
        return int(self.count @ (self.experts >= 0).sum(1))

    def starts(self, num_devices: int) -> Bool[np.ndarray, "M G"]:
        """Whether a set's tokens start on a device: on every one of them where no source is told.

        Raises:
            ValueError: a source is not among the devices.
        """
        if self.source is None:
            return np.ones((len(self.count), num_devices), bool)
        if self.source.max(initial=0) >= num_devices:
            raise ValueError(f"the routing has tokens of device {self.source.max()}, there are {num_devices} devices")
        return self.source[:, None] == np.arange(num_devices)


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Routings of sampled steps.

    Attributes:
        step: (S,) the sampled training steps, strictly increasing.
        expert_indices: (S, L, T, K) expert of each choice, -1 for none.
        source_device: (T,) device on which a token starts, 0 when a run had one device.
        num_experts: E.
        source: what produced the trace.

    Raises:
        ValueError: shapes disagree, steps do not increase, or an index lies outside -1..E-1.
    """

    step: Int[np.ndarray, " S"]
    expert_indices: Integer[np.ndarray, "S L T K"]
    source_device: Integer[np.ndarray, " T"]
    num_experts: int
    source: TraceSource

    def __post_init__(self) -> None:
        if self.expert_indices.ndim != 4 or self.step.shape != self.expert_indices.shape[:1]:
            raise ValueError(
                "a routing trace needs step (S,) and expert_indices (S, L, T, K); "
                f"got {self.step.shape} and {self.expert_indices.shape}"
            )
        if self.source_device.shape != self.expert_indices.shape[2:3]:
            raise ValueError(f"source_device has {self.source_device.shape}, tokens are {self.expert_indices.shape[2]}")
        if np.any(np.diff(self.step) <= 0):
            raise ValueError(f"sampled steps must increase strictly, got {self.step.tolist()}")
        if not np.issubdtype(self.expert_indices.dtype, np.integer):
            raise ValueError(f"expert indices must be integers, got {self.expert_indices.dtype}")
        if self.expert_indices.size and (
            self.expert_indices.min() < -1 or self.expert_indices.max() >= self.num_experts
        ):
            raise ValueError(
                f"expert indices must lie in -1..{self.num_experts - 1}, "
                f"got {self.expert_indices.min()}..{self.expert_indices.max()}"
            )

    def loads(self) -> Int[np.ndarray, "S L E"]:
        """Tokens routed to each expert; absent choices (-1) do not count."""
        num_steps, num_layers = self.expert_indices.shape[:2]
        counts_SLE = np.empty((num_steps, num_layers, self.num_experts), np.int64)
        # place 0 collects the absent choices and is cut off again
        for counts_LE, chosen_LTK in zip(counts_SLE, self.expert_indices, strict=True):
            for counts_E, chosen_TK in zip(counts_LE, chosen_LTK, strict=True):
                counts_E[:] = np.bincount(chosen_TK.ravel().astype(np.int64) + 1, minlength=self.num_experts + 1)[1:]
        return counts_SLE

    def collaboration(self) -> Int[np.ndarray, "L E E"]:
        """Tokens that chose experts i and j together, over all sampled steps: symmetric, diagonal zero.

        The count of Zhang et al. (2025, arXiv 2504.01337, authors' code): unordered pairs within a token's
        top-K set, not conditioned on which expert was first.
        """
        pairs_LEE = np.zeros((self.expert_indices.shape[1], self.num_experts, self.num_experts), np.int64)
        # step by step: float32 counts exactly to 2^24 tokens, and a trace may hold more
        for chosen_LTK in self.expert_indices:
            for pairs_EE, chosen_TK in zip(pairs_LEE, chosen_LTK, strict=True):
                chosen_TE = one_hot(chosen_TK, self.num_experts)
                pairs_EE += (chosen_TE.T @ chosen_TE).astype(np.int64)
        for pairs_EE in pairs_LEE:
            np.fill_diagonal(pairs_EE, 0)
        return pairs_LEE

    def sets(self) -> list[ExpertSets]:
        """The distinct sorted top-K sets of each layer with their token counts, over all sampled steps."""
        return count_sets(self.expert_indices)

    def sets_by_source(self) -> list[ExpertSets]:
        """As `sets`, told apart by the devices on which tokens start: for runs on the devices that are planned for."""
        return count_sets(self.expert_indices, self.source_device)


def count_sets(
    expert_indices: Integer[np.ndarray, "S L T K"], source: Integer[np.ndarray, " T"] | None = None
) -> list[ExpertSets]:
    """The distinct sorted top-K sets of each layer with their token counts, told apart by sources if these are given.

    Args:
        expert_indices: expert of each choice, -1 for none.
        source: device on which a token starts.
    """
    found = []
    for chosen_STK in np.sort(expert_indices, axis=-1).transpose(1, 0, 2, 3):
        if source is not None:
            source_ST = np.broadcast_to(source, chosen_STK.shape[:2])
            chosen_STK = np.concatenate([source_ST[..., None].astype(chosen_STK.dtype), chosen_STK], axis=-1)
        rows, count = np.unique(chosen_STK.reshape(-1, chosen_STK.shape[-1]), axis=0, return_counts=True)
        found.append(ExpertSets(rows, count) if source is None else ExpertSets(rows[:, 1:], count, rows[:, 0]))
    return found


def one_hot(chosen: Integer[np.ndarray, "*B K"], num_experts: int) -> Float[np.ndarray, "*B E"]:
    """1 where an expert was chosen, else 0; absent choices (-1) leave no mark."""
    # column E collects the absent choices and is cut off again
    marks = np.zeros((*chosen.shape[:-1], num_experts + 1), np.float32)
    np.put_along_axis(marks, chosen.astype(np.int64) % (num_experts + 1), 1.0, axis=-1)
    return marks[..., :-1]
