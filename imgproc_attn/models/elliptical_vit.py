"""Elliptical ViT: a metric from the change of the values between layers, max scale, in all layers but the first
(arXiv 2406.13770); absolute learned positions.
"""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {"kernel": "elliptical", "positions": "absolute"}

default_cfgs = generate_default_cfgs(cfgs("elliptical_vit"))


@register_model
def elliptical_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Elliptical ViT, 192 wide, 3 heads."""
    return create_filter_vit("elliptical_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def elliptical_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Elliptical ViT, 384 wide, 6 heads."""
    return create_filter_vit("elliptical_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def elliptical_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Elliptical ViT, 768 wide, 12 heads."""
    return create_filter_vit("elliptical_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_elliptical_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Elliptical ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_elliptical_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
