"""Backbones. Importing this package registers them with timm."""

from .checkpoints import seam_names
from .conversion import from_timm
from .families import FAMILIES
from .filter_vit import FilterVisionTransformer
from .seams import LayerSpec

__all__ = ["FAMILIES", "FilterVisionTransformer", "LayerSpec", "from_timm", "seam_names"]
