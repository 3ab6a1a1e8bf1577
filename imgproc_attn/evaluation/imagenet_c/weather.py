"""Weather corruptions of ImageNet-C (arXiv 1903.12261): snow, frost, fog, brightness, spatter."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from .blur import blur_along, magnified, smooth
from .noise import Generator, ImageArray

__all__ = ["brightness", "check_frost", "fog", "frost", "plasma", "snow", "spatter"]

GRAY = np.array([0.299, 0.587, 0.114])
FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # The published code never draws the sixth.


def snow(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Whiten the image, and add flakes with motion blur twice."""
    mean, std, zoom, least, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    flakes = magnified(rng.normal(size=x.shape[:2], loc=mean, scale=std), zoom)
    flakes = np.floor(np.clip(np.where(flakes < least, 0, flakes), 0, 1) * 255) / 255
    flakes = blur_along(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    x = keep * x + (1 - keep) * np.maximum(x, (x @ GRAY)[..., None] * 1.5 + 0.5)
    return x + flakes + flakes[::-1, ::-1]


def frost(x: ImageArray, severity: int, rng: Generator, folder: Path) -> ImageArray:
    """Add a crop of one of five photographs of frost.

    Photographs that do not cover the image are enlarged until they do. The authors' images are 224 x 224.

    Args:
        x: ``[H, W, 3]`` image in [0, 1].
        severity: 1 to 5.
        rng: Generator that draws the photograph and the crop.
        folder: Folder of the photographs, ``frost1.png`` to ``frost5.jpg``. They are in the authors' repository
            (hendrycks/robustness, ``ImageNet-C/create_c``) and do not come with this package.
    """
    keep, add = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    ice = _frost(folder / FROST[rng.integers(len(FROST))])
    enlarged = max((x.shape[0] + 1) / ice.shape[0], (x.shape[1] + 1) / ice.shape[1])
    if enlarged > 1:
        ice = ndimage.zoom(ice, (enlarged, enlarged, 1), order=1)
    room = [ice.shape[0] - x.shape[0], ice.shape[1] - x.shape[1]]
    top, left = rng.integers(0, room[0]), rng.integers(0, room[1])
    return keep * x + add * ice[top : top + x.shape[0], left : left + x.shape[1]]


def check_frost(folder: Path) -> str:
    """Check that all photographs of frost are in the folder.

    Returns:
        A hash of the photographs.

    Raises:
        FileNotFoundError: A photograph is missing.
    """
    missing = [name for name in FROST if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"frost: {folder} must hold {FROST[0]} to {FROST[-1]}, got no {', '.join(missing)}. Download them from "
            "github.com/hendrycks/robustness, ImageNet-C/create_c."
        )
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in FROST)).hexdigest()


@cache
def _frost(file: Path) -> ImageArray:
    with Image.open(file) as photograph:
        return np.asarray(photograph.convert("RGB"), dtype=np.float64) / 255


def fog(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Add a fractal of the diamond-square algorithm, and keep the brightest value."""
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    size = max(256, 1 << (max(x.shape[:2]) - 1).bit_length())
    clouds = plasma(size, decay, rng)[: x.shape[0], : x.shape[1], None]
    return (x + strength * clouds) * x.max() / (x.max() + strength)


def plasma(size: int, decay: float, rng: Generator) -> ImageArray:
    """Return a diamond-square fractal ``[size, size]`` in [0, 1] on a torus.

    Args:
        size: Side in pixels, a power of two.
        decay: Factor by which the noise shrinks per halving of the step.
        rng: Generator of the noise.
    """
    field, step, wobble = np.zeros((size, size)), size, 100.0

    def mean(total: ImageArray) -> ImageArray:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = mean(rows + np.roll(rows, -1, 1))
        centers = field[half::step, half::step]
        field[::step, half::step] = mean(centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1))
        field[half::step, ::step] = mean(centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    field -= field.min()
    return field / field.max()


def brightness(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Raise the value in HSV."""
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 0, 1)
    return hsv_to_rgb(hsv)


def spatter(x: ImageArray, severity: int, rng: Generator) -> ImageArray:
    """Add drops of water on the lens, or of mud from severity 4 on."""
    mean, std, sigma, least, strength = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[severity - 1]
    liquid = smooth(rng.normal(size=x.shape[:2], loc=mean, scale=std), sigma)
    liquid = np.where(liquid < least, 0, liquid)
    if severity > 3:
        mud = smooth((liquid > least).astype(np.float64), strength)
        mud = np.where(mud < 0.8, 0, mud)[..., None]
        return x * (1 - mud) + mud * np.array([63, 42, 20]) / 255
    water = _shine(np.floor(liquid * 255) % 256)
    return x + strength * water[..., None] * np.array([175, 238, 238]) / 255


def _shine(liquid: ImageArray) -> ImageArray:
    """Return the light on drops in [0, 1], from the distance to their edges. ``liquid`` is in 0 to 255."""
    distance = np.minimum(ndimage.distance_transform_edt(~_edges(liquid)), 20)
    gray = _equalized(np.floor(_box(distance)).astype(np.uint8))
    relief = ndimage.correlate(gray.astype(np.float64), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    shine = liquid * np.rint(_box(np.clip(relief, 0, 255)))
    return shine / max(shine.max(), 1e-12)


def _box(x: ImageArray) -> ImageArray:
    return ndimage.uniform_filter(x, 3, mode="mirror")


def _equalized(gray: np.ndarray) -> np.ndarray:
    """Equalize the histogram of 8-bit values. The darkest value becomes 0."""
    counts = np.bincount(gray.ravel(), minlength=256)
    first = counts.nonzero()[0][0]
    if counts[first] == gray.size:
        return gray
    below = np.cumsum(counts) - counts[first]
    return np.rint(below * 255 / (gray.size - counts[first])).clip(0, 255).astype(np.uint8)[gray]


def _edges(gray: ImageArray, low: float = 50, high: float = 150) -> np.ndarray:
    """Return the edges of Canny's detector: thinned Sobel slopes that are connected to a strong slope."""
    dx, dy = ndimage.sobel(gray, 1, mode="nearest"), ndimage.sobel(gray, 0, mode="nearest")
    size = np.abs(dx) + np.abs(dy)
    padded = np.pad(size, 1)

    def near(row: int, column: int) -> ImageArray:
        return padded[1 + row : 1 + row + size.shape[0], 1 + column : 1 + column + size.shape[1]]

    flat, steep = np.abs(dy) < np.abs(dx) * np.tan(np.pi / 8), np.abs(dy) > np.abs(dx) * np.tan(3 * np.pi / 8)
    rising = dx * dy < 0
    before = np.select([flat, steep, rising], [near(0, -1), near(-1, 0), near(-1, 1)], near(-1, -1))
    after = np.select([flat, steep, rising], [near(0, 1), near(1, 0), near(1, -1)], near(1, 1))
    thin = (size > low) & (size > before) & (size >= after)
    labels, _ = ndimage.label(thin, np.ones((3, 3)))
    strong = np.unique(labels[thin & (size > high)])
    return np.isin(labels, strong[strong > 0])
