"""Seconds of one MoE layer's step, forward and backward, side by side: what MegaBlocks does and what ours does.

All variants have the same router and the same prescribed choices, so they differ in what comes after the choice. Rounds
are interleaved: a slow minute of the machine falls on all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.dispatch import LocalDispatcher
from models.experts import Experts, GroupedExperts
from models.megablocks import MegaBlocksExperts, StockDMoE, check_label, native_parts
from models.moe import MoELayer
from routers.base import Router

WARM_UP = 3


class Size(NamedTuple):
    """T tokens, width D, expert width F, E experts, K experts a token."""

    tokens: int
    dim: int
    hidden_dim: int
    num_experts: int
    top_k: int


SIZES = (Size(4096, 512, 2048, 16, 2), Size(8192, 1024, 4096, 8, 2), Size(16384, 1024, 512, 64, 8))
# experts share tokens evenly, or as 1 / rank
SKEWS = {"uniform": 0.0, "zipf": 1.0}


class Prescribed(Router):
    """Chooses what it was told to: `chosen` (T, K) experts, whatever the scores."""

    chosen: Tensor

    def __init__(self, chosen: Int[Tensor, "T K"], dim: int, num_experts: int) -> None:
        super().__init__(dim, num_experts, 0, top_k=chosen.shape[1])
        self.register_buffer("chosen", chosen, persistent=False)

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        return self.chosen


class PaddedExperts(Experts):
    """Every expert padded to the busiest one's load: two batched products."""

    def forward(self, x_ND: Float[Tensor, "N D"], tokens_per_expert: Int[Tensor, " E"]) -> Float[Tensor, "N D"]:
        owner = torch.arange(len(tokens_per_expert), device=x_ND.device)
        owner = owner.repeat_interleave(tokens_per_expert, output_size=len(x_ND))
        first = tokens_per_expert.cumsum(0) - tokens_per_expert
        place = torch.arange(len(x_ND), device=x_ND.device) - first[owner]
        padded = x_ND.new_zeros(len(tokens_per_expert), int(tokens_per_expert.max()), x_ND.shape[1])
        padded = padded.index_put((owner, place), x_ND)
        hidden = self.activate((padded @ self.w1).flatten(0, 1)).unflatten(0, padded.shape[:2])
        return (hidden @ self.w2)[owner, place]


def draw_choices(size: Size, skew: float, seed: int = 0) -> Int[Tensor, "T K"]:
    """K different experts a token, expert e as often as 1 / (e + 1) ** skew would have it."""
    logits_TE = draw_logits(size.tokens, size.num_experts, skew, np.random.default_rng(seed))
    return torch.from_numpy(np.argsort(-logits_TE, axis=1)[:, : size.top_k].copy())


def draw_logits(
    num_tokens: int, num_experts: int, skew: float, generator: np.random.Generator
) -> Float[np.ndarray, "T E"]:
    """The logarithm of each expert's share, 1 / (e + 1) ** skew, plus Gumbel noise.

    A token's K largest are a draw without replacement by these shares (Kool et al., 2019, arXiv 1903.06059).
    """
    log_share_E = -skew * np.log(np.arange(1, num_experts + 1))
    return log_share_E + generator.gumbel(size=(num_tokens, num_experts))


def ours(experts: Callable[..., Experts], router: Router, size: Size) -> nn.Module:
    return MoELayer(router, experts(size.num_experts, size.dim, size.hidden_dim), LocalDispatcher())


def ours_with_megablocks(router: Router, size: Size) -> nn.Module:
    check_label(native_parts())
    return ours(MegaBlocksExperts, router, size)


def stock(mlp_impl: str, router: Router, size: Size) -> nn.Module:
    check_label(native_parts(mlp_impl))
    return StockDMoE(router, size.dim, size.hidden_dim, mlp_impl=mlp_impl)


VARIANTS: dict[str, Callable[[Router, Size], nn.Module]] = {
    "stock dMoE, grouped": partial(stock, "grouped"),
    "stock dMoE, sparse": partial(stock, "sparse"),
    "ours, grouped_mm": partial(ours, GroupedExperts),
    "ours, MegaBlocks' kernels": ours_with_megablocks,
    "ours, padded bmm": partial(ours, PaddedExperts),
}


def compare(
    size: Size, skew: str, device: torch.device, rounds: int, clock: Callable[[Callable[[], object]], float]
) -> Iterator[dict[str, Any]]:
    """One row a variant: `median_ms` with quartiles, or `reason` where it cannot run.

    Args:
        size: of the layer.
        skew: key of SKEWS.
        device: where; bfloat16 on CUDA, float32 elsewhere.
        rounds: measured steps of each variant.
        clock: runs a step and says how many milliseconds it took.
    """
    chosen, rows, steps = draw_choices(size, SKEWS[skew]), {}, {}
    for name, build in VARIANTS.items():
        try:
            steps[name] = make_step(build, chosen, size, device)
        # a label that is refused, memory that is not there, a kernel that does not compile: the others go on
        except Exception as error:
            rows[name] = {"reason": first_line(error)}
    times = interleave(steps, rounds, clock)
    for name in VARIANTS:
        measured = rows.get(name) or summary(times[name])
        yield {"kind": "timing", "variant": name, "skew": skew, **size._asdict(), **measured}


def first_line(error: Exception) -> str:
    """What an error says, without what follows it."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@dataclass(frozen=True)
class Step:
    """Forward and backward of a layer, (x_TD, token_ids) -> (out_TD, ...), on given tokens (T, D) with their ids (T,)
    and a given gradient (T, D) of its output."""

    layer: Any
    x_TD: Tensor
    token_ids: Tensor
    gradient_TD: Tensor

    def __call__(self) -> Tensor:
        self.clear()
        out_TD = self.layer(self.x_TD, self.token_ids)[0]
        out_TD.backward(self.gradient_TD)
        return out_TD.detach()

    def clear(self) -> None:
        """Let go of the last step's gradients."""
        self.layer.zero_grad()
        self.x_TD.grad = None


def make_step(
    build: Callable[[Router, Size], nn.Module], chosen: Int[Tensor, "T K"], size: Size, device: torch.device
) -> Step:
    """A layer's forward and backward pass, warmed up."""
    layer = build(Prescribed(chosen, size.dim, size.num_experts), size).to(device, precision(device))
    shape, generator = (size.tokens, size.dim), torch.Generator().manual_seed(0)
    x_TD, gradient_TD = (torch.randn(shape, generator=generator).to(device, precision(device)) for _ in range(2))
    token_ids = torch.zeros(size.tokens, dtype=torch.long, device=device)
    step = Step(layer, x_TD.requires_grad_(), token_ids, gradient_TD)
    for _ in range(WARM_UP):
        step()
    return step


def precision(device: torch.device) -> torch.dtype:
    """What grouped_gemm multiplies in on CUDA; float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def interleave(
    steps: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[Callable[[], object]], float]
) -> dict[str, list[float]]:
    """Milliseconds of each step, each round in another order."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(steps)):
            times[str(name)].append(clock(steps[str(name)]))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return {"median_ms": float(middle), "low_ms": float(low), "high_ms": float(high), "rounds": len(times)}


def cuda_clock(step: Callable[[], object]) -> float:
    """Milliseconds of one step between two events on the device; the host's work counts where it holds that up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)
