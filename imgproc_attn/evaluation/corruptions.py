"""Contaminated images: corruptions of images in [0, 1]."""

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from ..utils.checks import check_number, check_whole
from .contract import check_images
from .per_sample_rng import draw_per_sample


@dataclass(frozen=True)
class GaussianNoise:
    """Additive white Gaussian noise, clipped to [0, 1].

    Args:
        std: Standard deviation, in units of [0, 1].
        seed: Of the noise, which depends on it and the sample's id alone.
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("GaussianNoise: seed", self.seed)
        if not math.isfinite(check_number("GaussianNoise: std", self.std)) or self.std < 0:
            raise ValueError(f"GaussianNoise: std is {self.std}, but must be finite and not negative.")

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        images = check_images(images)
        noise = draw_per_sample(images, sample_ids, (self.seed,), lambda shape, g: torch.randn(shape, generator=g))
        return (images + self.std * noise).clamp(0, 1)


@dataclass(frozen=True)
class GaussianBlur:
    """Convolution with a Gaussian, cut off at four standard deviations; borders are mirrored (kornia's).

    Args:
        sigma: Standard deviation in pixels.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not math.isfinite(check_number("GaussianBlur: sigma", self.sigma)) or self.sigma <= 0:
            raise ValueError(f"GaussianBlur: sigma is {self.sigma}, but must be positive and finite.")

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        images = check_images(images)
        # a mirror is no wider than the picture
        radius = min(math.ceil(4 * self.sigma), min(images.shape[-2:]) - 1)
        size = 2 * radius + 1
        return gaussian_blur2d(images, (size, size), (self.sigma, self.sigma), border_type="reflect").clamp(0, 1)
