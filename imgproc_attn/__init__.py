"""Vision transformers whose attention is an image filter. Importing this package registers its models with timm."""

from . import segmentation
from .filtering import bilateral_filter, non_local_means
from .models import FilterVisionTransformer, LayerSpec, from_timm

__version__ = "0.1.0"

__all__ = [
    "FilterVisionTransformer",
    "LayerSpec",
    "__version__",
    "bilateral_filter",
    "from_timm",
    "non_local_means",
    "segmentation",
]
