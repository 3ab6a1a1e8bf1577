"""Non-local-means ViT: Gaussian range kernel with its own query and key projections, absolute learned positions."""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, LARGE, SMALL, TEST, TINY, cfgs

FAMILY = {"kernel": "gaussian_range", "positions": "absolute"}

default_cfgs = generate_default_cfgs(cfgs("nlm_vit", "large"))


@register_model
def nlm_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Non-local-means ViT, 192 wide, 3 heads."""
    return create_filter_vit("nlm_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def nlm_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Non-local-means ViT, 384 wide, 6 heads."""
    return create_filter_vit("nlm_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def nlm_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Non-local-means ViT, 768 wide, 12 heads."""
    return create_filter_vit("nlm_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def nlm_vit_large(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Non-local-means ViT, 1024 wide, 24 deep, 16 heads."""
    return create_filter_vit("nlm_vit_large", pretrained, **{**LARGE, **FAMILY, **kwargs})


@register_model
def test_nlm_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Non-local-means ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_nlm_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
