"""Filter weights: sums of rows, and which tokens see which."""

import pytest
import seeding
import timm
import timm.layers
import timm.optim
import torch
from backbones import BILATERAL, VARIANTS, small

from imgproc_attn.core.filters import SoftmaxFilter


def test_attention_weights_of_a_fused_model():
    model = small(**BILATERAL).eval()
    x = torch.randn(2, 3, 32, 32)
    maps = model.attention_weights(x)
    assert list(maps) == [0, 1, 2]
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(2, 2, 17))
    assert list(model.attention_weights(x, [-1])) == [2]


def test_timms_attention_hook():
    timm.layers.set_fused_attn(False)
    try:
        model = timm.create_model("test_bilateral_vit").eval()
    finally:
        timm.layers.set_fused_attn(True)
    assert not any(isinstance(m, SoftmaxFilter) for m in model.modules())
    x = torch.randn(1, 3, 160, 160)
    hooked = timm.utils.AttentionExtract(model, method="hook")(x)
    assert len(hooked) == 6
    for weights, expected in zip(hooked.values(), model.attention_weights(x).values()):
        torch.testing.assert_close(weights, expected)


def test_is_causal_and_masks_reach_the_filters():
    model = small(**BILATERAL).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    causal = model.forward_features(x, is_causal=True)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    torch.testing.assert_close(causal, model.forward_features(x, attn_mask=mask))
    assert not torch.allclose(causal, model.forward_features(x))


def perturbed(x):
    """Return images whose lower half has changed, that is the later half of the patches in row-major order."""
    y = x.clone()
    y[:, :, 16:] += torch.randn_like(y[:, :, 16:])
    return y


NO_MASKS = ("token statistics", "representatives", "nystroem", "linformer")
CAUSAL = {k: v for k, v in VARIANTS.items() if "token" not in str(v.get("global_pool")) and k not in NO_MASKS}


@pytest.mark.parametrize("variant", CAUSAL.values(), ids=CAUSAL)
def test_causality_by_changing_inputs(variant):
    """Inputs are changed, because gradients would not show a leak through a detached metric."""
    model = small(**variant).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before, after = (model.forward_features(image, is_causal=True) for image in (x, perturbed(x)))
    seen = model.num_prefix_tokens + 8
    torch.testing.assert_close(before[:, :seen], after[:, :seen], rtol=1e-10, atol=1e-10)
    assert (before[:, seen:] - after[:, seen:]).abs().max() > 1e-3


def test_locality_by_changing_inputs():
    """With narrow bandwidths, a distant change has no effect. A metric over all tokens spreads it everywhere."""
    narrow = {"name": "spatial_gaussian", "spatial_bandwidth": 0.3}
    for kernel, local in (("gaussian_range", True), ("dot_product", True), ("elliptical", False)):
        seeding.seed()
        model = small(kernel=kernel, positions=["sincos", narrow], class_token=False, global_pool="avg").double().eval()
        x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
        change = (model.forward_features(x) - model.forward_features(perturbed(x)))[0, :4].abs().max()
        assert (change < 1e-12) == local, (kernel, change)
