"""Backbones. Importing this package registers them with timm."""

from . import bilateral_untied_vit, bilateral_vit, nlm_vit, twicing_vit
from .filter_vit import FilterVisionTransformer
from .seams import LayerSpec

FAMILIES = ("nlm_vit", "bilateral_vit", "bilateral_untied_vit", "twicing_vit")

__all__ = [
    "FAMILIES",
    "FilterVisionTransformer",
    "LayerSpec",
    "bilateral_untied_vit",
    "bilateral_vit",
    "nlm_vit",
    "twicing_vit",
]
