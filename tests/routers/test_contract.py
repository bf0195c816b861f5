"""Every YAML in conf/router keeps the contract: a new file is tested without a new test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from routers.base import Router, Routing
from routers.losses import count_tokens

CONF = Path(__file__).parents[2] / "conf" / "router"
FILES = sorted(CONF.glob("*.yaml"))
D, E, T = 16, 8, 24
# what a trainer fills in for all layers, where a router's YAML names it
COLLABORATION = np.random.default_rng(0).integers(1, 50, (1, E, E)).repeat(2, axis=0)
COLLABORATION += COLLABORATION.transpose(0, 2, 1)
COLLABORATION[:, range(E), range(E)] = 0
DEVICES = np.arange(E)[None].repeat(2, axis=0) // 2
GIVEN = {"collaboration": COLLABORATION, "device_of_expert": DEVICES, "node_of_expert": DEVICES // 2}


def build(path: Path, *, layer: int = 0, **changes) -> Router:
    config = OmegaConf.create({"seed": 3, "router": OmegaConf.load(path)})
    given = {name: value for name, value in GIVEN.items() if name in config.router}
    if "top_t" in config.router:
        # lists of at least K - 1 partners, of at most all others
        given["top_t"] = min(E - 1, max(config.router.top_t, changes.get("top_k", config.router.top_k) - 1))
    torch.manual_seed(0)
    return instantiate(config.router, **{**given, **changes})(D, E, layer)


def build_if_possible(path: Path, **changes) -> Router:
    """A router for K experts a token, unless it says that its devices hold fewer."""
    try:
        return build(path, **changes)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError) and "device" in str(cause) and str(changes["top_k"]) in str(cause):
            pytest.skip(str(cause))
        raise


def inputs(num_tokens: int = T, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(num_tokens, D, generator=generator)
    return x_TD, torch.randint(100, (num_tokens,), generator=generator)


def assert_routing(router: Router, routing: Routing, num_tokens: int) -> None:
    """Shapes, distinct experts, and weights that fit them."""
    chosen, weights = routing.expert_indices, routing.expert_weights
    assert routing.scores.shape == (num_tokens, E)
    assert chosen.shape == weights.shape == (num_tokens, router.num_choices)
    assert chosen.dtype == torch.int64
    assert ((chosen >= -1) & (chosen < E)).all()
    for token in chosen.tolist():
        taken = [expert for expert in token if expert >= 0]
        assert len(set(taken)) == len(taken)
    assert (weights >= 0).all()
    assert (weights[chosen < 0] == 0).all()
    if router.renormalise:
        served = (chosen >= 0).any(-1)
        torch.testing.assert_close(weights.sum(-1), served.to(weights.dtype), atol=1e-5, rtol=0)


def test_there_are_routers():
    assert {"topk", "random", "uniform"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestContract:
    def test_says_what_it_is(self, path):
        assert path.read_text().startswith("# ")

    @pytest.mark.parametrize("num_tokens", [T, 1, 0])
    def test_routing_is_valid(self, path, num_tokens):
        router = build(path)
        assert_routing(router, router(*inputs(num_tokens)), num_tokens)

    @pytest.mark.parametrize("renormalise", [True, False])
    @pytest.mark.parametrize("top_k", [1, E])
    def test_takes_one_expert_and_all(self, path, top_k, renormalise):
        router = build_if_possible(path, top_k=top_k, renormalise=renormalise)
        assert_routing(router, router(*inputs()), T)

    def test_sequences_are_flattened(self, path):
        x_TD, token_ids = inputs()
        flat, nested = build(path)(x_TD, token_ids), build(path)(x_TD.view(4, 6, D), token_ids)
        assert all(torch.equal(a, b) for a, b in zip(flat, nested, strict=True))

    def test_padding_leaves_the_other_tokens_alone(self, path):
        router = build(path).eval()
        if not router.causal:
            pytest.skip("a method that looks at the whole batch")
        padding = torch.zeros(5, D), torch.zeros(5, dtype=torch.int64)
        x_TD, token_ids = inputs()
        alone = build(path).eval()(x_TD, token_ids)
        padded = router(torch.cat([x_TD, padding[0]]), torch.cat([token_ids, padding[1]]))
        for one, other in zip(alone, padded, strict=True):
            torch.testing.assert_close(one, other[:T])

    def test_is_deterministic(self, path):
        first, second = (build(path)(*inputs()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_goes_on_from_its_state(self, path):
        router, copy = build(path), build(path, layer=1)
        router(*inputs())
        copy.load_state_dict(router.state_dict())
        assert torch.equal(router(*inputs(seed=1)).expert_indices, copy(*inputs(seed=1)).expert_indices)

    def test_gradients_reach_the_gate(self, path):
        router = build(path)
        weights = router(*inputs()).expert_weights
        if not weights.requires_grad:
            pytest.skip("this method's weights do not depend on the scores")
        (weights * torch.arange(1, router.num_choices + 1)).sum().backward()
        assert router.gate.weight.grad.abs().sum() > 0

    def test_half_precision_is_scored_in_single(self, path):
        x_TD, token_ids = inputs()
        router = build(path).bfloat16()
        routing = router(x_TD.bfloat16(), token_ids)
        assert_routing(router, routing, T)
        assert routing.scores.dtype == torch.float32

    @pytest.mark.parametrize("num_tokens", [T, 1, 0])
    def test_losses_are_finite_and_reach_the_gate(self, path, num_tokens):
        router = build(path, balance_weight=0.5, z_weight=0.25)
        x_TD, token_ids = inputs(num_tokens)
        logits = router.logits(x_TD)
        losses = router.losses(logits, router.route(logits, token_ids))
        assert {"balance", "z"} <= losses.keys()
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert router.gate.weight.grad.isfinite().all()
        assert (router.gate.weight.grad.abs().sum() > 0) == (num_tokens > 0)

    def test_losses_of_weight_zero_are_left_out(self, path):
        router = build(path, balance_weight=0.0, z_weight=0.0)
        x_TD, token_ids = inputs()
        logits = router.logits(x_TD)
        assert not {"balance", "z"} & router.losses(logits, router.route(logits, token_ids)).keys()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"top_k": 0}, r"top_k .* 8, got 0"),
            ({"top_k": 9}, r"top_k .* 8, got 9"),
            ({"balance_weight": -0.5}, "balance_weight=-0.5"),
            ({"z_weight": -0.25}, "z_weight=-0.25"),
        ],
    )
    def test_bad_value_is_named(self, path, changes, message):
        with pytest.raises(Exception, match=message) as caught:
            build(path, **changes)
        assert isinstance(caught.value.__cause__ or caught.value, ValueError)

    def test_misspelt_key_is_an_error(self, path):
        with pytest.raises(Exception, match="topk"):
            build(path, topk=2)


# what follows from an expert's number and not from its gate
NUMBERED = {"random", "uniform", "hash", "c2r_random"}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in NUMBERED], ids=lambda path: path.stem)
def test_permuting_the_experts_permutes_choices_and_loads(path):
    permutation = torch.randperm(E, generator=torch.Generator().manual_seed(1))
    order = permutation.numpy()
    permute = {
        "collaboration": lambda counts: counts[:, order][:, :, order],
        "device_of_expert": lambda table: table[:, order],
        "node_of_expert": lambda table: table[:, order],
    }
    named = OmegaConf.load(path)
    changes = {name: change(GIVEN[name]) for name, change in permute.items() if name in named}
    router, permuted = build(path).eval(), build(path, **changes).eval()
    with torch.no_grad():
        # expert e of the permuted gate is expert permutation[e] of the other
        permuted.gate.weight.copy_(router.gate.weight[permutation])
    routing, other = router(*inputs()), permuted(*inputs())
    loads, other_loads = (count_tokens(r.expert_indices, E) for r in (routing, other))
    assert torch.equal(loads[permutation], other_loads)
    weights = weight_of_expert(routing)
    assert not torch.equal(weights[:, permutation], weights), "else there is nothing to see"
    torch.testing.assert_close(weights[:, permutation], weight_of_expert(other))


def weight_of_expert(routing: Routing) -> torch.Tensor:
    """(T, E) weight of each expert, 0 where it was not chosen."""
    chosen, weights = routing.expert_indices, routing.expert_weights
    return torch.zeros(len(chosen), E + 1).scatter(1, torch.where(chosen < 0, E, chosen), weights.detach())[:, :E]
