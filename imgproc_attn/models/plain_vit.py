"""Plain ViT: softmax attention and absolute learned positions, pooled by average without a class token.

The corner of the 2 x 2 {plain, bilateral} x {plain, boosted stream} that has neither; the others are `bilateral_vit`,
`sos_stream_vit` and `bilateral_sos_stream_vit`, pooled alike.
"""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {
    "kernel": "dot_product",
    "positions": "absolute",
    "class_token": False,
    "global_pool": "avg",
}

default_cfgs = generate_default_cfgs(cfgs("plain_vit"))


@register_model
def plain_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Plain ViT, 192 wide, 3 heads."""
    return create_filter_vit("plain_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def plain_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Plain ViT, 384 wide, 6 heads."""
    return create_filter_vit("plain_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def plain_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Plain ViT, 768 wide, 12 heads."""
    return create_filter_vit("plain_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_plain_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Plain ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_plain_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
