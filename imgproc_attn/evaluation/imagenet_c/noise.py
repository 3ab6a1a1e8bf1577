"""Noise of ImageNet-C (arXiv 1903.12261): Gaussian, shot, impulse, speckle.

In all modules of this package, images are ``[H, W, 3]`` float64 in [0, 1], and severities are 1 to 5.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Generator", "ImageArray", "gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]

ImageArray = NDArray[np.float64]
Generator = np.random.Generator


def gaussian_noise(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Add normal noise."""
    return x + rng.normal(size=x.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1])


def shot_noise(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Apply Poisson noise, with a number of photons for white per severity."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Replace single values by 0 or 1 with equal probability (salt and pepper)."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = rng.uniform(size=x.shape) < share, rng.uniform(size=x.shape) < 0.5
    return np.where(hit, salt, x)


def speckle_noise(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Add normal noise in proportion to the value."""
    return x + x * rng.normal(size=x.shape, scale=(0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1])
