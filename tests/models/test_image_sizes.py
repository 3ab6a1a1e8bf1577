"""Images of any size, and dropped patches."""

import pytest
import torch
from backbones import BILATERAL, VARIANTS, small


@pytest.mark.parametrize(
    ("shape", "kwargs", "message"),
    [
        ((1, 4, 32, 32), {}, r"\[batch, 3, height, width\], got \[1, 4, 32, 32\].*in_chans="),
        ((3, 32, 32), {}, r"got \[3, 32, 32\]"),
        ((1, 3, 40, 32), {}, "must be 32 x 32, .* got 40 x 32.*dynamic_img_size=True"),
        ((1, 3, 36, 32), {"dynamic_img_size": True}, "must be divisible by the patch, 8 x 8, got 36 x 32"),
    ],
)
def test_refuses_images(shape, kwargs, message):
    model = small(**kwargs)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(torch.zeros(shape))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_dynamic_size_equals_a_model_of_that_size(variant):
    """Dynamic sizes equal a set size, up to the resampling of the position table."""
    model = small(**variant, dynamic_img_size=True).eval()
    fixed = small(**variant).eval()
    fixed.load_state_dict(model.state_dict())
    for size in [(24, 40), (48, 16)]:
        fixed.set_input_size(size)
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(model(x), fixed(x), rtol=1e-4, atol=1e-4)
        fixed.set_input_size((32, 32))
        fixed.load_state_dict(model.state_dict())


def test_padding_to_the_patch():
    model = small(**BILATERAL, dynamic_img_size=True, dynamic_img_pad=True).eval()
    assert model(torch.randn(1, 3, 30, 43)).shape == (1, 5)
    features = model.forward_intermediates(torch.randn(1, 3, 30, 43), intermediates_only=True)
    assert features[0].shape == (1, 32, 4, 6)


NO_MASKS = ("elliptical", "token statistics", "representatives", "nystroem", "linformer", "sliding window")
MASKABLE = {name: variant for name, variant in VARIANTS.items() if not any(part in name for part in NO_MASKS)}


@pytest.mark.parametrize("variant", MASKABLE.values(), ids=MASKABLE)
def test_patch_dropout_filters_with_the_places_that_are_left(variant):
    """Dropping patches equals a mask that hides them."""
    model = small(**variant, patch_drop_rate=0.5).double().train()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    kept = {}
    drop = model.patch_drop.forward

    def spy(tokens):
        kept["tokens"], kept["keep"] = drop(tokens)
        return kept["tokens"], kept["keep"]

    model.patch_drop.forward = spy
    result = model.forward_features(x)
    prefix, keep = model.num_prefix_tokens, kept["keep"]
    assert keep.shape == (2, 8)
    model.eval()
    model.patch_drop.forward = drop
    seen = torch.zeros(2, prefix + 16, dtype=torch.bool)
    seen[:, :prefix] = True
    seen.scatter_(1, keep + prefix, True)
    masked = model.forward_features(x, attn_mask=seen[:, None, None, :])
    index = torch.cat([torch.arange(prefix).expand(2, -1), keep + prefix], 1)
    expected = masked.gather(1, index[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_patch_dropout_and_feature_maps():
    model = small(patch_drop_rate=0.5).train()
    with pytest.raises(
        ValueError, match="must be all 16 for output_fmt='NCHW', got 8 after patch dropout. Use output_fmt='NLC'"
    ):
        model.forward_intermediates(torch.randn(1, 3, 32, 32))
    tokens = model.forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC", intermediates_only=True)
    assert tokens[0].shape == (1, 8, 32)


def test_one_patch():
    model = small(**BILATERAL, class_token=False, global_pool="avg")
    model.set_input_size((8, 8))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
