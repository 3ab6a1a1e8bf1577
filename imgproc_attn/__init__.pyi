"""What the package offers, for type checkers, and for `lazy_loader`, which loads it on first use."""

from . import core, diagnostics, evaluation, experiments, models, segmentation, training
from .image_filters import bilateral_filter, non_local_means
from .models import FilterVisionTransformer, LayerSpec, from_timm

__version__: str

__all__ = [
    "FilterVisionTransformer",
    "LayerSpec",
    "__version__",
    "bilateral_filter",
    "core",
    "diagnostics",
    "evaluation",
    "experiments",
    "from_timm",
    "models",
    "non_local_means",
    "segmentation",
    "training",
]
