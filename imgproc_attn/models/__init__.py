"""Backbones and conversion. Importing this package registers the backbones with timm."""

from ..core.components import LayerSpec
from .checkpoints import component_names
from .conversion import from_timm
from .families import FAMILIES
from .filter_vit import FilterVisionTransformer

__all__ = ["FAMILIES", "FilterVisionTransformer", "LayerSpec", "component_names", "from_timm"]
