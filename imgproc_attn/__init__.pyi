"""Public names of the package. Type checkers read this file, and `lazy_loader` loads the names on first use."""

from . import (
    core,
    diagnostics,
    evaluation,
    experiments,
    in_context,
    language,
    models,
    recipe,
    segmentation,
    sequences,
    tasks,
    training,
)
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
    "in_context",
    "language",
    "models",
    "non_local_means",
    "recipe",
    "segmentation",
    "sequences",
    "tasks",
    "training",
]
