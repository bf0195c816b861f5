"""A named synthetic workload: a shape of load, a size and a seed give the same traces on every call."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from traces.load import LoadTrace, TraceSource
from traces.routing import RoutingTrace
from traces.synthetic.popularity import Popularity
from traces.synthetic.sampler import chances, draw_choices, draw_counts, feasible
from traces.synthetic.size import Size

# of the draws: two versions give other tokens for one seed
VERSION = "synthetic-1"
# walks of this many layers at once: 256 experts, top-8, then take 40 MB
ROWS = 2048


@dataclass(frozen=True)
class Workload:
    """What conf/workload names; the traces' source says `synthetic/NAME`, the shape, and that there are no data.

    Attributes:
        name: of the workload.
        popularity: the shape of its load.
        size: how much is drawn.
        seed: of everything that is random, 0 or more.
        source_skew: device g starts a number of tokens proportional to (g + 1) ** -source_skew; 0: all as many.

    Raises:
        ValueError: the seed or the skew is negative.
    """

    name: str
    popularity: Popularity
    size: Size
    seed: int
    source_skew: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seed", "source_skew"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def proportion(self) -> Float[np.ndarray, "S L E"]:
        """The shares from which tokens are drawn: what the perfect forecast would say. Read only.

        Raises:
            ValueError: the size leaves no room for the shape; no token can be drawn like this.
        """
        shape = (self.size.num_steps, self.size.num_layers, self.size.num_experts)
        return np.broadcast_to(self._changing_proportion(), shape)

    def traces(self, routing_every: int | None = None) -> tuple[LoadTrace, RoutingTrace | None]:
        """The loads of every step and, where asked, the tokens' experts at steps 0, routing_every, ...

        A sampled step's loads are those of its tokens; those of all other steps do not depend on the sampling.

        Raises:
            ValueError: as `proportion`, or routing_every is below 1.
        """
        if routing_every is not None and routing_every < 1:
            raise ValueError(f"routing_every must be at least 1 step, got {routing_every}")
        proportion = self._changing_proportion()
        step, tokens = np.arange(self.size.num_steps), self._count(proportion)
        if routing_every is None:
            return LoadTrace(step, tokens, self.source()), None
        routing = self._route(proportion, step[::routing_every])
        tokens[routing.step] = routing.loads()
        return LoadTrace(step, tokens, self.source()), routing

    def source(self) -> TraceSource:
        """Model `synthetic/NAME`; the shape stands in the router's place."""
        return TraceSource(
            model=f"synthetic/{self.name}",
            router=f"{self.popularity}, {self.size.num_devices} devices, source_skew {self.source_skew}",
            seed=self.seed,
            tokens_per_step=self.size.tokens_per_step,
            top_k=self.size.top_k,
            data_fingerprint="none",
            version=VERSION,
        )

    def source_device(self) -> Int[np.ndarray, " T"]:
        """Device on which each token starts."""
        weight = np.arange(1, self.size.num_devices + 1) ** -float(self.source_skew)
        # shares rounded one by one might add up to another number of tokens; rounded bounds cannot
        bounds = np.rint(self.size.tokens_per_step * np.cumsum(weight) / weight.sum()).astype(int)
        return np.repeat(np.arange(self.size.num_devices), np.diff(bounds, prepend=0)).astype(np.int16)

    def _changing_proportion(self) -> Float[np.ndarray, "P L E"]:
        return feasible(self.popularity(self.size, np.random.default_rng([self.seed, 0])), self.size.top_k)

    def _count(self, proportion_PLE: Float[np.ndarray, "P L E"]) -> Int[np.ndarray, "S L E"]:
        rng = np.random.default_rng([self.seed, 1])
        num_steps, num_tokens, top_k = self.size.num_steps, self.size.tokens_per_step, self.size.top_k
        if len(proportion_PLE) == 1:
            walk = chances(proportion_PLE, top_k)
            every_step = np.broadcast_to(walk, (*walk.shape[:2], num_steps, walk.shape[3]))
            return draw_counts(every_step, num_tokens, rng)
        num_parts = -(-num_steps * self.size.num_layers // ROWS)
        parts = np.array_split(proportion_PLE, min(num_parts, num_steps))
        return np.concatenate([draw_counts(chances(part, top_k), num_tokens, rng) for part in parts])

    def _route(self, proportion_PLE: Float[np.ndarray, "P L E"], step: Int[np.ndarray, " R"]) -> RoutingTrace:
        shared = chances(proportion_PLE[0], self.size.top_k) if len(proportion_PLE) == 1 else None
        chosen = []
        for number in step.tolist():
            walk = chances(proportion_PLE[number], self.size.top_k) if shared is None else shared
            # a generator for each step: its tokens stay the same whichever others are sampled
            rng = np.random.default_rng([self.seed, 2, number])
            chosen.append(draw_choices(walk, self.size.tokens_per_step, rng))
        return RoutingTrace(step, np.stack(chosen), self.source_device(), self.size.num_experts, self.source())
