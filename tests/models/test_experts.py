import pytest
import torch
from torch.nn import functional as F

from models.experts import Experts, GroupedExperts, LoopExperts
from models.gated_experts import GatedExperts
from models.megablocks import MegaBlocksExperts, is_installed

E, D, HIDDEN = 4, 8, 12
LOADS = {
    "even": [5, 5, 5, 5],
    "uneven": [1, 13, 2, 7],
    "empty_experts": [0, 9, 0, 3],
    "one_takes_all": [0, 0, 0, 11],
    "no_rows": [0, 0, 0, 0],
}

megablocks = pytest.param(
    MegaBlocksExperts,
    marks=pytest.mark.skipif(not is_installed() or torch.cuda.is_available(), reason="MegaBlocks over stand-ins"),
)


def build(experts: type[Experts], dim: int = D, hidden_dim: int = HIDDEN) -> Experts:
    torch.manual_seed(0)
    return experts(E, dim, hidden_dim, init_std=0.5)


def rows_of(loads: list[int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x_ND = torch.randn(sum(loads), D, generator=torch.Generator().manual_seed(1))
    return x_ND.to(dtype).requires_grad_(), torch.tensor(loads)


def gradients(experts: Experts, loads: list[int]) -> list[torch.Tensor]:
    """Of a product with random numbers, by rows and both weights."""
    x_ND, tokens_per_expert = rows_of(loads)
    y_ND = experts(x_ND, tokens_per_expert)
    (y_ND * torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [x_ND.grad, experts.w1.grad, experts.w2.grad]


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
class TestEquality:
    @pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts])
    def test_forward_equals_row_by_row(self, backend, loads):
        experts, (x_ND, tokens_per_expert) = build(backend), rows_of(loads)
        owner = torch.repeat_interleave(torch.arange(E), tokens_per_expert)
        slowly = [
            F.gelu(x @ experts.w1[e], approximate="tanh") @ experts.w2[e] for x, e in zip(x_ND, owner, strict=True)
        ]
        expected = torch.stack(slowly) if slowly else torch.zeros(0, D)
        torch.testing.assert_close(experts(x_ND, tokens_per_expert), expected, rtol=1e-4, atol=1e-5)

    def test_gradients_are_equal(self, loads):
        loop, grouped = gradients(build(LoopExperts), loads), gradients(build(GroupedExperts), loads)
        for expected, found in zip(loop, grouped, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_experts_without_tokens_get_no_gradient(self, loads):
        _, *weights = gradients(build(GroupedExperts), loads)
        for gradient in weights:
            moved = gradient.abs().sum((1, 2)) > 0
            assert moved.tolist() == [load > 0 for load in loads]


@pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts])
class TestBackends:
    def test_expanded_gradient_goes_through(self, backend):
        x_ND, tokens_per_expert = rows_of(LOADS["uneven"])
        build(backend)(x_ND, tokens_per_expert).sum().backward()
        assert x_ND.grad.isfinite().all()
        assert x_ND.grad.abs().sum() > 0

    def test_rows_beyond_the_experts_change_nothing(self, backend):
        plain, longer = build(backend), build(backend)
        x_ND, tokens_per_expert = rows_of(LOADS["uneven"])
        longer_x_ND = torch.cat([x_ND.detach(), torch.full((4, D), 100.0)]).requires_grad_()
        expected = plain(x_ND, tokens_per_expert)
        found = longer(longer_x_ND, tokens_per_expert)[: len(x_ND)]
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(longer_x_ND.grad[: len(x_ND)], x_ND.grad)
        torch.testing.assert_close([p.grad for p in longer.parameters()], [p.grad for p in plain.parameters()])

    def test_half_precision_is_close(self, backend):
        (x_ND, tokens_per_expert), experts = rows_of(LOADS["uneven"]), build(backend, hidden_dim=16)
        exact = experts(x_ND, tokens_per_expert)
        half = experts.bfloat16()(x_ND.bfloat16(), tokens_per_expert)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.1 * exact.abs().max().item())

    def test_checkpoints_are_interchangeable(self, backend):
        state = build(LoopExperts).state_dict()
        assert {name: tuple(t.shape) for name, t in state.items()} == {"w1": (E, D, HIDDEN), "w2": (E, HIDDEN, D)}
        build(backend).load_state_dict(state)

    def test_initial_spread(self, backend):
        experts = backend(8, 64, 64, init_std=0.02, output_std=0.005)
        assert experts.w1.std().item() == pytest.approx(0.02, rel=0.05)
        assert experts.w2.std().item() == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("backend", [LoopExperts, GroupedExperts, GatedExperts, megablocks])
@pytest.mark.parametrize("loads", [LOADS["uneven"], LOADS["empty_experts"]])
def test_autocast_multiplies_in_bfloat16_and_keeps_float32_weights(backend, loads):
    experts, (x_ND, tokens_per_expert) = build(backend, hidden_dim=16), rows_of(loads)
    exact_ND = experts(x_ND, tokens_per_expert)
    with torch.autocast("cpu", torch.bfloat16):
        y_ND = experts(x_ND, tokens_per_expert)
    assert y_ND.dtype == torch.bfloat16
    torch.testing.assert_close(y_ND.float(), exact_ND, atol=0.05, rtol=0.05)
    y_ND.sum().backward()
    assert experts.w1.grad.dtype == experts.w1.dtype == torch.float32


class TestGuards:
    @pytest.mark.parametrize(("dim", "hidden_dim", "width"), [(6, 8, 6), (8, 10, 10)])
    def test_unaligned_width_is_named(self, dim, hidden_dim, width):
        experts = build(GroupedExperts, dim, hidden_dim)
        with pytest.raises(ValueError, match=rf"width {width} in torch\.float32 is {4 * width} bytes.*experts=loop"):
            experts(torch.zeros(E, dim), torch.ones(E, dtype=torch.int64))

    def test_width_that_only_single_precision_allows(self):
        experts, loads = build(GroupedExperts), torch.ones(E, dtype=torch.int64)
        assert experts(torch.zeros(E, D), loads).shape == (E, D)
        with pytest.raises(ValueError, match=r"width 12 in torch\.bfloat16 is 24 bytes"):
            experts.bfloat16()(torch.zeros(E, D).bfloat16(), loads)

    def test_double_precision_names_the_way_out(self):
        x_ND, loads = rows_of(LOADS["even"], torch.float64)
        with pytest.raises(ValueError, match=r"got torch\.float64; use experts=loop"):
            build(GroupedExperts).double()(x_ND, loads)
        assert build(LoopExperts).double()(x_ND, loads).dtype == torch.float64

    def test_the_seam_has_no_default(self):
        with pytest.raises(NotImplementedError):
            build(Experts)(*rows_of(LOADS["even"]))
