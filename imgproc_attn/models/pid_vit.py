"""PID ViT: softmax attention steered to the first layer's values by three gains, after PIDformer (arXiv 2402.15989).

Formula and gains are second-hand, unverified (`imgproc_attn.residuals.PID`).
"""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {"kernel": "dot_product", "positions": "absolute", "residual": "pid"}

default_cfgs = generate_default_cfgs(cfgs("pid_vit"))


@register_model
def pid_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """PID ViT, 192 wide, 3 heads."""
    return create_filter_vit("pid_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def pid_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """PID ViT, 384 wide, 6 heads."""
    return create_filter_vit("pid_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def pid_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """PID ViT, 768 wide, 12 heads."""
    return create_filter_vit("pid_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_pid_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """PID ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_pid_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
