"""Bilateral ViT, untied: dot-product content times dot-product positions, no position added to the tokens.

Pooled by average, without a class token, as in `bilateral_vit` and for the same reason.
"""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {"kernel": "dot_product", "positions": "untied", "class_token": False, "global_pool": "avg"}

default_cfgs = generate_default_cfgs(cfgs("bilateral_untied_vit"))


@register_model
def bilateral_untied_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT with untied positions, 192 wide, 3 heads."""
    return create_filter_vit("bilateral_untied_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def bilateral_untied_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT with untied positions, 384 wide, 6 heads."""
    return create_filter_vit("bilateral_untied_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def bilateral_untied_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT with untied positions, 768 wide, 12 heads."""
    return create_filter_vit("bilateral_untied_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_bilateral_untied_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """Bilateral ViT with untied positions, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_bilateral_untied_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
