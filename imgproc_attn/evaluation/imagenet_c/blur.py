"""Blurs of ImageNet-C (arXiv 1903.12261): Gaussian, glass, defocus, motion, zoom."""

import math

import numpy as np
from scipy import ndimage

from .noise import Generator, ImageArray

__all__ = [
    "blur_along",
    "defocus_blur",
    "gaussian_blur",
    "glass_blur",
    "magnified",
    "motion_blur",
    "smooth",
    "zoom_blur",
]


def smooth(x: ImageArray, sigma: float) -> ImageArray:
    """Smooth each channel by a Gaussian cut off at four standard deviations, with repeated borders, as scikit-image does."""
    return ndimage.gaussian_filter(x, (sigma, sigma, 0) if x.ndim == 3 else sigma, mode="nearest", truncate=4.0)


def gaussian_blur(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Convolve with a Gaussian."""
    return smooth(x, (1, 2, 3, 4, 6)[severity - 1])


def glass_blur(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Copy the colors of near pixels, between two Gaussian blurs.

    The published code intends to swap two pixels. Because of a numpy view, it copies one over the other, and so does this code.
    """
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    pixels = np.floor(np.clip(smooth(x, sigma), 0, 1) * 255)
    height, width = x.shape[:2]
    for _ in range(times):
        rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
        moves = rng.integers(-reach, reach, size=(len(rows) * len(columns), 2)).tolist()
        positions = ((row, column) for row in rows for column in columns)
        for (row, column), (dx, dy) in zip(positions, moves):  # The order matters, because copies may be copied again.
            pixels[row, column] = pixels[row + dy, column + dx]
    return smooth(pixels / 255, sigma)


def defocus_blur(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Convolve with a disk with a soft edge."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach = max(8, radius)
    y, x_ = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x_**2 + y**2 <= radius**2).astype(np.float64)
    half = 1 if radius <= 8 else 2
    line = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * edge**2))
    line /= line.sum()
    kernel = disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, line, axis=axis, mode="mirror")
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(x.shape[2])], axis=2)


def motion_blur(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Blur along a line of at most 45 degrees."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return blur_along(x, radius, sigma, rng.uniform(-45, 45))


def blur_along(x: ImageArray, radius: float, sigma: float, angle: float) -> ImageArray:
    """Blur as ImageMagick does: half a Gaussian along ``angle`` degrees, repeated borders, rounded down to 8 bits."""
    count = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, width = x.shape[:2]
    result = np.zeros_like(x)
    for i, weight in enumerate(weights):
        rows = np.clip(np.arange(height) + math.ceil(i * down - 0.5), 0, height - 1)
        columns = np.clip(np.arange(width) + math.ceil(i * right - 0.5), 0, width - 1)
        result += weight * x[rows][:, columns]
    return np.floor(result * 255 + 1e-6) / 255


def zoom_blur(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Return the mean of the image and its magnifications."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, end, step)
    return (x + sum(magnified(x, factor) for factor in factors)) / (len(factors) + 1)


def magnified(x: ImageArray, factor: float) -> ImageArray:
    """Return the center of the image, enlarged ``factor`` times by bilinear interpolation."""
    height, width = x.shape[:2]
    cut = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    center = x[top : top + cut[0], left : left + cut[1]]
    large = ndimage.zoom(center, (factor, factor) + (1,) * (x.ndim - 2), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]
