"""NeuTRENO ViT: softmax attention held to the first layer's values, lambda 0.6 (arXiv 2312.00751)."""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {"kernel": "dot_product", "positions": "absolute", "residual": "neutreno"}

default_cfgs = generate_default_cfgs(cfgs("neutreno_vit"))


@register_model
def neutreno_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """NeuTRENO ViT, 192 wide, 3 heads."""
    return create_filter_vit("neutreno_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def neutreno_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """NeuTRENO ViT, 384 wide, 6 heads."""
    return create_filter_vit("neutreno_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def neutreno_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """NeuTRENO ViT, 768 wide, 12 heads."""
    return create_filter_vit("neutreno_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_neutreno_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """NeuTRENO ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_neutreno_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
