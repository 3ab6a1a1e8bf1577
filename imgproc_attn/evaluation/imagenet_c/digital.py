"""Digital corruptions of ImageNet-C (arXiv 1903.12261): contrast, elastic, pixelate, JPEG, saturate."""

import io

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from .noise import Generator, ImageArray

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate", "saturate"]


def contrast(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Move the values towards the mean of each channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def saturate(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Scale and raise the saturation in HSV."""
    scale, add = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    hsv = rgb_to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * scale + add, 0, 1)
    return hsv_to_rgb(hsv)


def jpeg_compression(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Compress with Pillow at qualities 25 to 7."""
    file = io.BytesIO()
    _as_pil(x).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(file) as compressed:
        return np.asarray(compressed.convert("RGB"), dtype=np.float64) / 255


def pixelate(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Reduce and enlarge the image with a box filter."""
    share, (height, width) = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1], x.shape[:2]
    small = _as_pil(x).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255


def elastic_transform(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Apply a random affine map, then a smooth random displacement. Lengths are the published ones, for 224 pixels."""
    strength, sigma, corner = (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    )[severity - 1]
    height, width = x.shape[:2]
    x = _moved(x, corner, rng)
    dx, dy = (
        strength * ndimage.gaussian_filter(rng.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    positions = np.stack([rows + dy, columns + dx])
    return np.stack([ndimage.map_coordinates(x[..., c], positions, order=1, mode="reflect") for c in range(x.shape[2])], axis=2)


def _moved(x: ImageArray, corner: float, rng: Generator) -> ImageArray:
    """Apply the affine map that moves three points near the center by at most ``corner`` pixels along each axis."""
    height, width = x.shape[:2]
    center, side = np.array([height // 2, width // 2], dtype=np.float64), min(height, width) // 3
    # Points are (x, y), as in the published code.
    points = np.stack([center + side, center + np.array([side, -side]), center - side])
    moved = points + rng.uniform(-corner, corner, size=points.shape)
    # The result at (x, y) is the image at the inverse of the map.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points).T
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    source_x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2]
    source_y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2]
    positions = np.stack([source_y, source_x])
    return np.stack([ndimage.map_coordinates(x[..., c], positions, order=1, mode="mirror") for c in range(x.shape[2])], axis=2)


def _as_pil(x: ImageArray) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))
