"""Gate logits stay in float32 whatever the model's precision."""

import torch

from routers.topk import TopK


def test_logits_are_float32_under_autocast_and_for_bfloat16_weights() -> None:
    torch.manual_seed(0)
    router = TopK(16, 8, 0, top_k=2)
    x_TD = torch.randn(5, 16)
    exact_TE = router.logits(x_TD)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(router.logits(x_TD), exact_TE, atol=0, rtol=0)
    half = router.to(torch.bfloat16).logits(x_TD.to(torch.bfloat16))
    assert half.dtype == torch.float32
