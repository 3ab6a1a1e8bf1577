"""Backbones. Importing this package registers them with timm."""

from . import (
    bilateral_sos_stream_vit,
    bilateral_untied_vit,
    bilateral_vit,
    elliptical_vit,
    neutreno_vit,
    nlm_vit,
    pid_vit,
    plain_vit,
    sos_stream_vit,
    sos_vit,
    twicing_vit,
)
from .checkpoints import seam_names
from .conversion import from_timm
from .filter_vit import FilterVisionTransformer
from .seams import LayerSpec

FAMILIES = (
    "plain_vit",
    "nlm_vit",
    "bilateral_vit",
    "bilateral_untied_vit",
    "elliptical_vit",
    "twicing_vit",
    "sos_vit",
    "neutreno_vit",
    "pid_vit",
    "sos_stream_vit",
    "bilateral_sos_stream_vit",
)

__all__ = [
    "FAMILIES",
    "FilterVisionTransformer",
    "LayerSpec",
    "bilateral_sos_stream_vit",
    "bilateral_untied_vit",
    "bilateral_vit",
    "elliptical_vit",
    "from_timm",
    "neutreno_vit",
    "nlm_vit",
    "pid_vit",
    "plain_vit",
    "seam_names",
    "sos_stream_vit",
    "sos_vit",
    "twicing_vit",
]
