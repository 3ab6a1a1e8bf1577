"""SOS-stream ViT: `plain_vit` with strengthen-operate-subtract around each attention branch, the filter estimated anew."""

from timm.models import generate_default_cfgs, register_model

from .filter_vit import FilterVisionTransformer, create_filter_vit
from .presets import BASE, SMALL, TEST, TINY, cfgs

FAMILY = {
    "kernel": "dot_product",
    "positions": "absolute",
    "stream": "sos",
    "class_token": False,
    "global_pool": "avg",
}

default_cfgs = generate_default_cfgs(cfgs("sos_stream_vit"))


@register_model
def sos_stream_vit_tiny(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """SOS-stream ViT, 192 wide, 3 heads."""
    return create_filter_vit("sos_stream_vit_tiny", pretrained, **{**TINY, **FAMILY, **kwargs})


@register_model
def sos_stream_vit_small(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """SOS-stream ViT, 384 wide, 6 heads."""
    return create_filter_vit("sos_stream_vit_small", pretrained, **{**SMALL, **FAMILY, **kwargs})


@register_model
def sos_stream_vit_base(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """SOS-stream ViT, 768 wide, 12 heads."""
    return create_filter_vit("sos_stream_vit_base", pretrained, **{**BASE, **FAMILY, **kwargs})


@register_model
def test_sos_stream_vit(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
    """SOS-stream ViT, 64 wide, 2 heads, 160 x 160, for quick tests."""
    return create_filter_vit("test_sos_stream_vit", pretrained, **{**TEST, **FAMILY, **kwargs})
