"""Names of ImageNet-C's corruptions (arXiv 1903.12261), each with its module in `imgproc_attn.evaluation.imagenet_c`.

The console command and the schema of recipes list these names. Therefore this module imports no torch, numpy or scipy.
"""

from collections.abc import Mapping

__all__ = ["COMMON", "CORRUPTIONS", "EXTRA"]

COMMON: Mapping[str, str] = {
    "gaussian_noise": "noise",
    "shot_noise": "noise",
    "impulse_noise": "noise",
    "defocus_blur": "blur",
    "glass_blur": "blur",
    "motion_blur": "blur",
    "zoom_blur": "blur",
    "snow": "weather",
    "frost": "weather",
    "fog": "weather",
    "brightness": "weather",
    "contrast": "digital",
    "elastic_transform": "digital",
    "pixelate": "digital",
    "jpeg_compression": "digital",
}
EXTRA: Mapping[str, str] = {
    "speckle_noise": "noise",
    "gaussian_blur": "blur",
    "spatter": "weather",
    "saturate": "digital",
}
CORRUPTIONS: Mapping[str, str] = {**COMMON, **EXTRA}
