"""Does MegaBlocks compute on this machine what it should? Each part against a plain reference.

On a machine without CUDA the same functions compare the stand-ins, and Triton's kernels where they are interpreted.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.layer_timing import Prescribed, precision
from models.dispatch import LocalDispatcher
from models.experts import LoopExperts
from models.megablocks import MegaBlocksExperts, StockDMoE, load
from models.moe import MoELayer
from routers.base import Router
from routers.topk import TopK

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.04}
TOKENS, DIM, HIDDEN, EXPERTS, TOP_K = 200, 128, 128, 5, 2
# Triton overflowed at the 257th block of 128 columns
MANY_EXPERTS = 264


class Check(NamedTuple):
    """One comparison: the largest difference, as a share of the largest number expected."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def compared(name: str, found: Tensor, expected: Tensor, tolerance: float) -> Check:
    difference = (found.double() - expected.double()).abs().max()
    return Check(name, float(difference / expected.double().abs().max().clamp(min=1)), tolerance)


def check_ops(device: torch.device) -> Iterator[Check]:
    """The extension's functions, exactly."""
    load()
    ops = importlib.import_module("megablocks.ops")
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(EXPERTS, (TOKENS,), generator=generator).int()
    counts = [x.tolist().count(expert) for expert in range(EXPERTS)]
    ends = torch.tensor([sum(counts[: expert + 1]) for expert in range(EXPERTS)])
    starts, padded = ends - torch.tensor(counts), [-(-count // 128) * 128 for count in counts]
    padded_ends = torch.tensor([sum(padded[: expert + 1]) for expert in range(EXPERTS)])
    columns = [2 * expert + c for expert in range(EXPERTS) for _ in range(padded[expert] // 128) for c in range(2)]
    on_device = {name: t.int().to(device) for name, t in {"x": x, "ends": ends, "padded": padded_ends}.items()}
    counted = ops.histogram(on_device["x"], EXPERTS)
    values, origin = ops.sort(on_device["x"], 3)
    found = {
        "sort, values": (values, torch.tensor(sorted(x.tolist()))),
        "sort, origin": (origin, torch.tensor(sorted(range(TOKENS), key=lambda i: (int(x[i]), i)))),
        "histogram": (counted, torch.tensor(counts)),
        "inclusive_cumsum": (ops.inclusive_cumsum(counted, 0), ends),
        "exclusive_cumsum": (ops.exclusive_cumsum(counted, 0), starts),
        "replicate": (ops.replicate(counted[None], on_device["ends"], TOKENS)[0], torch.tensor(counts)[x.sort()[0]]),
        "topology": (ops.topology(on_device["padded"], 128, sum(padded) // 128, 2), torch.tensor(columns)),
    }
    for name, (result, expected) in found.items():
        yield compared(f"ops: {name}", result.cpu(), expected, 0.0)


def check_kernels(device: torch.device) -> Iterator[Check]:
    """Rows gathered by expert and scattered back, and their gradients, in float32."""
    load()
    ops = importlib.import_module("megablocks.ops")
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(TOKENS, DIM, generator=generator), torch.rand(TOKENS * TOP_K, generator=generator)
    expert = torch.randint(EXPERTS, (TOKENS * TOP_K,), generator=generator)
    bin_ids, indices = (t.int().to(device) for t in expert.sort(stable=True))
    bins = torch.bincount(expert, minlength=EXPERTS).cumsum(0).int().to(device)

    def by_kernels(x: Tensor, weights: Tensor) -> Tensor:
        rows = ops.gather(x, indices, bin_ids, bins, TOP_K)
        return ops.scatter(rows * rows, indices, bin_ids, weights, bins, TOP_K)

    def plainly(x: Tensor, weights: Tensor) -> Tensor:
        return (x * x) * weights.view(TOKENS, TOP_K).sum(1, keepdim=True)

    for (name, found), (_, expected) in zip(
        results(by_kernels, x.to(device), weights.to(device)), results(plainly, x, weights), strict=True
    ):
        yield compared(f"kernels: {name}", found.cpu(), expected, TOLERANCE[torch.float32])


def results(function: Callable[..., Tensor], *inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The function's output, and the gradient of the sum of its squares for each input."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    out.square().sum().backward()
    yield "output", out.detach()
    for number, leaf in enumerate(leaves):
        assert leaf.grad is not None
        yield f"gradient {number}", leaf.grad


def top_k() -> Router:
    return TopK(DIM, EXPERTS, 0, top_k=TOP_K)


def check_grouped(device: torch.device) -> Iterator[Check]:
    """The stock dMoE over grouped products, and our layer over the same, against one product an expert."""
    yield from layer_checks("dMoE grouped", StockDMoE(top_k(), DIM, HIDDEN), top_k(), device)
    ours = MoELayer(top_k(), MegaBlocksExperts(EXPERTS, DIM, HIDDEN), LocalDispatcher())
    yield from layer_checks("MegaBlocksExperts", ours, top_k(), device)


def check_sparse(device: torch.device) -> Iterator[Check]:
    """The stock dMoE over block-sparse products."""
    layer = StockDMoE(top_k(), DIM, HIDDEN, mlp_impl="sparse")
    yield from layer_checks("dMoE sparse", layer, top_k(), device)


def check_wide_indices(device: torch.device) -> Iterator[Check]:
    """Block-sparse products beyond block 256, where indices of 16 bits overflowed: only the last experts are chosen."""
    chosen = MANY_EXPERTS - 1 - (torch.arange(TOKENS)[:, None] + torch.arange(TOP_K)) % 4
    layer = StockDMoE(Prescribed(chosen, DIM, MANY_EXPERTS), DIM, HIDDEN, mlp_impl="sparse")
    yield from layer_checks("int16 fix", layer, Prescribed(chosen, DIM, MANY_EXPERTS), device)


def layer_checks(name: str, layer: nn.Module, router: Router, device: torch.device) -> Iterator[Check]:
    """Output and gradients of a layer, against ours over one product an expert in float32 with the same weights."""
    dtype = precision(device)
    reference = MoELayer(router, LoopExperts(router.num_experts, DIM, HIDDEN, init_std=0.1), LocalDispatcher())
    # both start from the same rounded numbers
    reference.to(dtype).float().to(device)
    layer.load_state_dict({name: t.to(dtype) for name, t in reference.state_dict().items()})
    layer.to(device, dtype)
    x_TD = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    expected, found = run(reference, x_TD.float()), run(layer, x_TD)
    for part, value in expected.items():
        yield compared(f"{name}: {part}", found[part], value, TOLERANCE[dtype])


def run(layer: Any, x_TD: Tensor) -> dict[str, Tensor]:
    """Output and gradients by the layer's input and weights, which have the names of its state dict."""
    x_TD = x_TD.clone().requires_grad_()
    out_TD = layer(x_TD, torch.zeros(len(x_TD), dtype=torch.long, device=x_TD.device))[0]
    weight_TD = torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(2)).to(out_TD)
    (out_TD * weight_TD).sum().backward()
    # a gradient takes a weight's place, so that it is renamed and laid out as the weight is
    for parameter in layer.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    assert x_TD.grad is not None
    return {"output": out_TD.detach(), "gradient x": x_TD.grad} | {
        f"gradient {name}": gradient for name, gradient in layer.state_dict().items()
    }


CHECKS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "ops": check_ops,
    "kernels": check_kernels,
    "grouped": check_grouped,
    "sparse": check_sparse,
    "int16 fix": check_wide_indices,
}
