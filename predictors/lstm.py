"""LSTM over the loads of all experts of all layers (Cong et al., 2024, arXiv:2404.16914).

From the paper: the history of all experts of all layers goes in concatenated, the proportions of the next k
iterations come out, and it is trained on other runs than the one it is tested on. The paper does not state
the layout; ours:

- in: the last `num_bins` x `bin_steps` steps as means of bins, one bin a time step of the LSTM, as log(E p);
- out: one direct head over segments of the future that end at the knots 1, 2, 5, 10, ..., 2,000. The head of
  a segment forecasts its mean, which is set at the segment's centre, joined by straight lines, and held
  beyond the ends;
- each layer's experts go through a softmax. "Anchored" adds the log of the mean over the last `anchor_steps`
  to the logits, and the head starts at zero: training then begins from a sliding window's forecast;
- loss: cross-entropy against the segment's realised mean proportions, over all segments inside the training
  run.

Budget: every candidate of `learning_rates` x `hidden_sizes` x `anchored` gets the same `num_steps` Adam steps
(cosine to 0, norm clipped at 1) of `batch_size` windows on the first part of every training run. The one with
the lowest total variation of segment means on the last `validation_share` of those runs is trained again, for
the same number of steps, on the whole of them. conf/predictor/lstm.yaml (anchored) and lstm_plain.yaml (not)
have the same budget: 3 learning rates x 2 hidden sizes = 6 candidates x 400 steps, + 400 = 2,800 steps of 32
windows. Their learning rates differ: each range was laid around the optimum by that validation error on a
nano16 run.

Expert 3 of one run is not expert 3 of another, so within each training window the experts of a layer are
shuffled (`shuffle_experts`); without that the network learns the training run's experts by heart.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import nn

from predictors.base import recent_proportions
from predictors.segments import future_segments, join, past_bins, running_total, usable_knots
from traces.load import LoadTrace

SMALLEST = 1e-3  # share of the uniform one that a load of 0 counts as inside a logarithm


@dataclass(frozen=True)
class Candidate:
    """One setting that the budget tries."""

    learning_rate: float
    hidden_size: int
    anchored: bool

    def __str__(self) -> str:
        anchor = "anchored" if self.anchored else "unanchored"
        return f"lr {self.learning_rate:g}, hidden {self.hidden_size}, {anchor}"


class Network(nn.Module):
    """LSTM over binned log loads, then one linear head for all segments."""

    def __init__(self, num_layers: int, num_experts: int, num_segments: int, candidate: Candidate) -> None:
        super().__init__()
        self.shape = (num_segments, num_layers, num_experts)
        self.anchored = candidate.anchored
        self.recurrent = nn.LSTM(num_layers * num_experts, candidate.hidden_size, batch_first=True)
        self.head = nn.Linear(candidate.hidden_size, num_segments * num_layers * num_experts)
        if self.anchored:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self, bins: Float[torch.Tensor, "B N L E"], anchor: Float[torch.Tensor, "B L E"]
    ) -> Float[torch.Tensor, "B M L E"]:
        """Log proportions of the M segments' means."""
        hidden_BNF, _ = self.recurrent(_log_load(bins).flatten(2))
        logits_BMLE = self.head(hidden_BNF[:, -1]).unflatten(1, self.shape)
        if self.anchored:
            logits_BMLE = logits_BMLE + _log_load(anchor)[:, None]
        return logits_BMLE.log_softmax(-1)


class Lstm:
    """The paper's LSTM, with a stated, equal budget for its unstated settings (see the module).

    Deterministic by `seed` on one machine; runs on one thread and leaves torch's global generator and thread
    count as they were. After `fit`, `chosen` is the selected Candidate and `validation` maps each to its
    total variation.
    """

    def __init__(
        self,
        learning_rates: Sequence[float] = (1e-4, 3e-4, 1e-3),
        hidden_sizes: Sequence[int] = (32, 128),
        anchored: Sequence[bool] = (True,),
        num_steps: int = 400,
        batch_size: int = 32,
        num_bins: int = 32,
        bin_steps: int = 10,
        anchor_steps: int = 100,
        validation_share: float = 0.3,
        shuffle_experts: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0.0 < validation_share < 1.0:
            raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share}")
        self.candidates = [Candidate(*setting) for setting in itertools.product(learning_rates, hidden_sizes, anchored)]
        sizes = (num_steps, batch_size, num_bins, bin_steps, anchor_steps)
        if not self.candidates or min(sizes) < 1:
            raise ValueError(
                f"an LSTM needs candidates and sizes above 0, got {len(self.candidates)} candidates and "
                f"(num_steps, batch_size, num_bins, bin_steps, anchor_steps) = {sizes}"
            )
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.num_bins = num_bins
        self.bin_steps = bin_steps
        self.anchor_steps = anchor_steps
        self.validation_share = validation_share
        self.shuffle_experts = shuffle_experts
        self.seed = seed
        self.validation: dict[Candidate, float] = {}
        self.chosen: Candidate | None = None
        self._network: Network | None = None
        self._knots: tuple[int, ...] = ()

    def fit(self, traces: list[LoadTrace]) -> None:
        """Spend the budget on other runs: try every candidate, then train the best on all steps.

        Raises:
            ValueError: no run, runs of different (L, E), or one of fewer than 10 steps.
        """
        _check_runs(traces)
        totals = [running_total(trace.proportion) for trace in traces]
        lengths = [len(trace.step) for trace in traces]
        learned = [max(int(length * (1 - self.validation_share)), 2) for length in lengths]
        self._knots = usable_knots(max(lengths))
        with _one_thread_and_own_generator(self.seed):
            self.validation = {
                candidate: self._validate(self._train(candidate, totals, learned), totals, learned)
                for candidate in self.candidates
            }
            self.chosen = min(self.validation, key=self.validation.__getitem__)
            self._network = self._train(self.chosen, totals, lengths)

    def forecast(self, past: Integer[np.ndarray, "S L E"], horizon: int) -> Float[np.ndarray, "H L E"]:
        """Forecast all segments at once from the end of `past`; a short past repeats its first bin.

        Raises:
            ValueError: not fitted yet, or fitted on another (L, E).
        """
        if self._network is None:
            raise ValueError("this LSTM has not been fitted: call fit(traces of other runs) before forecast")
        if past.shape[1:] != self._network.shape[1:]:
            raise ValueError(f"fitted on (L, E) = {self._network.shape[1:]}, asked to forecast {past.shape[1:]}")
        reach = max(self.num_bins * self.bin_steps, self.anchor_steps)
        total = running_total(recent_proportions(past, horizon, last=reach))
        with _one_thread_and_own_generator(self.seed), torch.no_grad():
            segment_MLE = self._answer(self._network, *self._inputs(total, np.array([len(total) - 1])))[0]
        segment_MLE = segment_MLE.double().exp().numpy()
        return join(segment_MLE / segment_MLE.sum(-1, keepdims=True), self._knots, horizon)

    def _train(self, candidate: Candidate, totals: list[np.ndarray], ends: list[int]) -> Network:
        """One training; the same seed, hence the same windows, for every candidate."""
        torch.default_generator.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        network = Network(*totals[0].shape[1:], num_segments=len(self._knots), candidate=candidate)
        optimizer = torch.optim.Adam(network.parameters(), lr=candidate.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.num_steps)
        for _ in range(self.num_steps):
            bins, anchor, target = self._draw(totals, ends, rng)
            loss = _cross_entropy(self._answer(network, bins, anchor), torch.from_numpy(target).float())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return network

    def _draw(
        self, totals: list[np.ndarray], ends: list[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch of windows of one run, drawn at random; its target lies before that run's end."""
        run = int(rng.integers(len(totals)))
        origins = rng.integers(1, ends[run], size=self.batch_size)
        bins, anchor = self._inputs(totals[run], origins)
        target = future_segments(totals[run], origins, self._knots, ends[run])
        if self.shuffle_experts:
            order = rng.permuted(np.broadcast_to(np.arange(anchor.shape[-1]), anchor.shape), axis=-1)
            bins, target = (np.take_along_axis(x, order[:, None], axis=-1) for x in (bins, target))
            anchor = np.take_along_axis(anchor, order, axis=-1)
        return bins, anchor, target

    def _inputs(
        self, total: Float[np.ndarray, "Z L E"], origins: Integer[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, "B N L E"], Float[np.ndarray, "B L E"]]:
        anchor = past_bins(total, origins, num_bins=1, bin_steps=self.anchor_steps)[:, 0]
        return past_bins(total, origins, self.num_bins, self.bin_steps), anchor

    @staticmethod
    def _answer(network: Network, bins: np.ndarray, anchor: np.ndarray) -> Float[torch.Tensor, "B M L E"]:
        return network(torch.from_numpy(bins).float(), torch.from_numpy(anchor).float())

    def _validate(self, network: Network, totals: list[np.ndarray], learned: list[int]) -> float:
        """Total variation of segment means on the part not learned from, every segment weighing the same."""
        distances = []
        for total, first in zip(totals, learned, strict=True):
            origins = np.unique(np.linspace(first, len(total) - 2, num=64, dtype=int))
            target = future_segments(total, origins, self._knots, end=len(total) - 1)
            with torch.no_grad():
                answer = self._answer(network, *self._inputs(total, origins)).exp().numpy()
            distances.append(np.abs(answer - target).sum(-1).mean(-1) / 2)
        stacked = np.concatenate(distances)
        reached = ~np.isnan(stacked).all(0)
        return float(np.nanmean(stacked[:, reached], axis=0).mean())


def _log_load(proportion: Float[torch.Tensor, "... E"]) -> Float[torch.Tensor, "... E"]:
    return torch.log((proportion * proportion.shape[-1]).clamp_min(SMALLEST))


def _cross_entropy(
    log_proportion: Float[torch.Tensor, "B M L E"], target: Float[torch.Tensor, "B M L E"]
) -> Float[torch.Tensor, ""]:
    """Mean over the segments that lie inside the run; the others are NaN in `target`."""
    inside = ~target.isnan()
    return -(log_proportion * target.where(inside, 0.0)).sum() / inside[..., 0].sum()


def _check_runs(traces: list[LoadTrace]) -> None:
    if not traces:
        raise ValueError("the LSTM is trained on other runs: fit needs at least one trace, got none")
    shapes = {trace.tokens.shape[1:] for trace in traces}
    if len(shapes) > 1:
        raise ValueError(f"training runs must agree in (L, E), got {sorted(shapes)}")
    shortest = min(len(trace.step) for trace in traces)
    if shortest < 10:
        raise ValueError(f"a training run needs at least 10 steps, the shortest has {shortest}")


@contextmanager
def _one_thread_and_own_generator(seed: int) -> Iterator[None]:
    """torch's global thread count and generator are put back on the way out."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for every GPU as well
            yield
    finally:
        torch.set_num_threads(num_threads)
