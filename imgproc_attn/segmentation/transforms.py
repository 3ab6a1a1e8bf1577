"""Joint transforms of images and label maps, built on torchvision's v2. Labels are never interpolated or normalized."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from .metrics import IGNORE_INDEX

__all__ = [
    "CropOfSeveral",
    "PhotometricDistortion",
    "RandomScale",
    "SegmentationPreprocessing",
    "joint_transform",
    "resized",
]

# The longer side is at most 4 times the shorter one, as in mmsegmentation (2048 x 512). Otherwise a narrow strip would become
# an image of gigabytes.
LONGEST = 4


class SegmentationPreprocessing(NamedTuple):
    """Preprocessing of a segmenter's images in evaluation. Images come one by one; labels are not changed.

    Attributes:
        mean: Values per channel that are subtracted from images in [0, 1].
        std: Values per channel by which images are then divided.
        short_side: Shorter side in pixels to which images are resized in proportion. Default: no resizing.

    Example:
        >>> SegmentationPreprocessing((0.5,), (0.25,), 512).without_normalization()
        SegmentationPreprocessing(mean=(0.0,), std=(1.0,), short_side=512)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None = None

    def without_normalization(self) -> "SegmentationPreprocessing":
        """Return the same preprocessing without normalization: images stay in [0, 1]."""
        channels = len(self.mean)
        return self._replace(mean=(0.0,) * channels, std=(1.0,) * channels)

    def transform(self) -> Callable[[Any, Any], Any]:
        """Return the transform of an image and its labels."""
        return partial(_with_short_side, self.short_side)


def _with_short_side(short_side: int | None, image: Any, mask: Any) -> tuple[Any, Any]:
    return (image if short_side is None else resized(image, short_side)), mask


def resized(image: Any, short_side: int) -> Any:
    """Resize an image ``[C, H, W]`` in proportion.

    Args:
        image: Image to resize.
        short_side: Shorter side of the result in pixels. The longer side is at most 4 times as long, so the shorter side
            of a narrow strip is less than this.

    Example:
        >>> resized(torch.rand(3, 20, 40), 10).shape, resized(torch.rand(3, 20, 400), 10).shape
        (torch.Size([3, 10, 20]), torch.Size([3, 2, 40]))
    """
    longest, sides = LONGEST * short_side, image.shape[-2:]
    if max(sides) > longest * min(sides):  # torchvision would round the shorter side to 0.
        size = [max(1, round(side * longest / max(sides))) for side in sides]
        return v2.functional.resize(image, size, antialias=True)
    return v2.functional.resize(image, [short_side], max_size=longest, antialias=True)


class CropOfSeveral(nn.Module):
    """Random crop in which no class dominates, as in mmsegmentation (``cat_max_ratio``).

    Up to ten crops are drawn. The tenth is used whatever it contains. Sides of images that are smaller than the crop are
    not cropped.

    Args:
        size: (height, width) of the crop.
        largest_share: Largest share of the crop's labeled pixels that one class may have.
    """

    def __init__(self, size: tuple[int, int], largest_share: float = 0.75) -> None:
        super().__init__()
        self.size, self.largest_share = size, largest_share

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        crop = v2.RandomCrop([min(pair) for pair in zip(self.size, image.shape[-2:])])
        for _ in range(10):
            cropped = crop(image, mask)
            counts = torch.bincount(cropped[1].flatten().long(), minlength=256)[:IGNORE_INDEX]
            if (counts > 0).sum() > 1 and counts.max() < self.largest_share * counts.sum():
                break
        return cropped


class RandomScale(nn.Module):
    """Random resizing in proportion.

    Args:
        short_side: Shorter side in pixels at factor 1. Default: the shorter side of the image.
        scale: Smallest and largest factor.
    """

    def __init__(self, short_side: int | None, scale: tuple[float, float]) -> None:
        super().__init__()
        self.short_side, self.scale = short_side, scale

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        if self.short_side is None:
            image = v2.functional.resize(image, [max(1, round(min(image.shape[-2:]) * factor))], antialias=True)
        else:
            image = resized(image, max(1, round(self.short_side * factor)))
        # The mode "nearest" of torchvision is off by half a pixel, "nearest-exact" is not.
        labels = F.interpolate(mask[None, None].as_subclass(torch.Tensor), size=image.shape[-2:], mode="nearest-exact")[0, 0]
        return image, tv_tensors.Mask(labels)


class PhotometricDistortion(nn.Module):
    """Random brightness, contrast, saturation and hue, each with probability 0.5, by mmsegmentation's formulas.

    - Brightness is a shift of up to 32 gray levels.
    - Contrast and saturation (in HSV space) are factors from 0.5 to 1.5.
    - Hue is rotated by up to 36 degrees.

    Contrast is changed before saturation and hue or after them, at random.
    """

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        """Distort an image ``[3, H, W]`` in 8 bits."""
        steps: list[Any] = [(_brightness, -32, 32), (_saturation, 0.5, 1.5), (v2.functional.adjust_hue, -0.1, 0.1)]
        steps.insert(1 if _coin() else 3, (_contrast, 0.5, 1.5))
        for step, low, high in steps:
            image = step(image, low + (high - low) * torch.rand(()).item()) if _coin() else image
        return tv_tensors.Image(image), mask


def _coin() -> bool:
    return torch.rand(()).item() < 0.5


def _in_8_bits(image: torch.Tensor) -> torch.Tensor:
    return image.clamp(0, 255).to(torch.uint8)


def _brightness(image: torch.Tensor, shift: float) -> torch.Tensor:
    return _in_8_bits(image.float() + shift)


def _contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    return _in_8_bits(image.float() * factor)


def _saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Scale the distance of each channel to the largest one by a factor, limited so that the smallest stays at least 0."""
    values = image.float()
    largest, smallest = values.amax(0, keepdim=True), values.amin(0, keepdim=True)
    factors = (largest / (largest - smallest).clamp_min(1)).clamp_max(factor)
    return _in_8_bits((largest - factors * (largest - values)).round())


def joint_transform(
    crop: tuple[int, int],
    short_side: int | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    photometric: bool = True,
) -> v2.Transform:
    """Build the training transform of Segmenter and mmsegmentation for an image and its label map.

    It consists of random scale, random crop, horizontal flip and photometric distortion, then padding to the crop size at
    the right and at the bottom.

    Args:
        crop: (height, width) of the result.
        short_side: Shorter side of the image in pixels at scale 1. Default: the shorter side of the image.
        scale: Smallest and largest scale.
        flip: Probability of a horizontal flip.
        photometric: Whether to apply `PhotometricDistortion`.

    Example:
        >>> image, mask = tv_tensors.Image(torch.zeros(3, 20, 30).byte()), tv_tensors.Mask(torch.zeros(20, 30).byte())
        >>> [tuple(part.shape) for part in joint_transform(crop=(16, 64))(image, mask)]
        [(3, 16, 64), (16, 64)]
    """
    steps: list[nn.Module] = [RandomScale(short_side, scale), CropOfSeveral(crop), v2.RandomHorizontalFlip(flip)]
    if photometric:
        steps.append(PhotometricDistortion())
    return v2.Compose([*steps, partial(_padded, crop)])


def _padded(size: tuple[int, int], image: Any, mask: Any) -> tuple[Any, Any]:
    """Pad the image with gray, which normalization maps to about 0, and the labels with the ignored label."""
    bottom, right = (max(0, wanted - side) for wanted, side in zip(size, image.shape[-2:]))
    fill: Any = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE_INDEX}
    return v2.Pad([0, 0, right, bottom], fill=fill)(image, mask)
