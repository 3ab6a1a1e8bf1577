"""Corruptions of images in [0, 1]: Gaussian noise and blur."""

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from ..utils.checks import check_number, check_whole
from .contract import check_images
from .per_sample_rng import draw_per_sample

__all__ = ["GaussianBlur", "GaussianNoise"]


@dataclass(frozen=True)
class GaussianNoise:
    """Additive white Gaussian noise, clipped to [0, 1].

    Args:
        std: Standard deviation, in units of images in [0, 1].
        seed: Seed of the noise, which depends only on it and the sample's id.

    Raises:
        TypeError: A setting is not a number.
        ValueError: ``std`` is negative or not finite.

    Example:
        >>> GaussianNoise(0.1)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("GaussianNoise: seed", self.seed)
        if not math.isfinite(check_number("GaussianNoise: std", self.std)) or self.std < 0:
            raise ValueError(f"GaussianNoise: std must be finite and at least 0, got {self.std}. 0.1 is a common value.")

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        images = check_images(images)
        noise = draw_per_sample(images, sample_ids, (self.seed,), lambda shape, g: torch.randn(shape, generator=g))
        return (images + self.std * noise).clamp(0, 1)


@dataclass(frozen=True)
class GaussianBlur:
    """Convolution with a Gaussian that is cut off at four standard deviations. Borders are mirrored, as in kornia.

    Args:
        sigma: Standard deviation in pixels.

    Raises:
        TypeError: ``sigma`` is not a number.
        ValueError: ``sigma`` is not positive and finite.

    Example:
        >>> GaussianBlur(1.0)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    sigma: float

    def __post_init__(self) -> None:
        if not math.isfinite(check_number("GaussianBlur: sigma", self.sigma)) or self.sigma <= 0:
            raise ValueError(f"GaussianBlur: sigma must be positive and finite, got {self.sigma}. 1.0 is a common value.")

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        images = check_images(images)
        # A mirrored border must be smaller than the image.
        radius = min(math.ceil(4 * self.sigma), min(images.shape[-2:]) - 1)
        size = 2 * radius + 1
        return gaussian_blur2d(images, (size, size), (self.sigma, self.sigma), border_type="reflect").clamp(0, 1)
