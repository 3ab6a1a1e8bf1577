"""Bilateral ViT: Gaussian range kernel times spatial Gaussian, absolute learned positions in the tokens.

Pooled by average, without a class token: the row of a class token has no place, so under class-token pooling the last
block's spatial bandwidths would get no gradient.
"""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, LARGE, SMALL, TEST, TINY, cfgs

FAMILY = {
    "kernel": "gaussian_range",
    "positions": ("absolute", "spatial_gaussian"),
    "class_token": False,
    "global_pool": "avg",
}

default_cfgs = generate_default_cfgs(cfgs("bilateral_vit", "large"))


@register_model
def bilateral_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT, 192 wide, 3 heads."""
    return create_filter_vit("bilateral_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def bilateral_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT, 384 wide, 6 heads."""
    return create_filter_vit("bilateral_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def bilateral_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT, 768 wide, 12 heads."""
    return create_filter_vit("bilateral_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def bilateral_vit_large(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT, 1024 wide, 24 deep, 16 heads."""
    return create_filter_vit("bilateral_vit_large", pretrained, **{**LARGE, **FAMILY, **kwargs})


@register_model
def test_bilateral_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_bilateral_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
