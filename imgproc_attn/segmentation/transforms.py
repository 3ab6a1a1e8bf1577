"""Joint transforms of pictures and label maps, of torchvision's v2: labels are never interpolated, nor normalized."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from .metrics import IGNORE_INDEX

LONGEST = 4  # times the shorter side: mmsegmentation's 2048 x 512, so that a strip does not become a picture of gigabytes


class SegmentationPreprocessing(NamedTuple):
    """How a segmenter wants its pictures in evaluation: one by one, each at its own size or resized; labels stay as they are.

    Attributes:
        mean: Subtracted from pictures in [0, 1].
        std: What they are divided by.
        short_side: In pixels, to which pictures are resized, sides in proportion. Default: as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None = None

    def without_normalization(self) -> "SegmentationPreprocessing":
        """The same pictures, in [0, 1]."""
        channels = len(self.mean)
        return self._replace(mean=(0.0,) * channels, std=(1.0,) * channels)

    def transform(self) -> Callable[[Any, Any], Any]:
        """Of picture and labels."""
        return partial(_with_short_side, self.short_side)


def _with_short_side(short_side: int | None, image: Any, mask: Any) -> tuple[Any, Any]:
    return (image if short_side is None else resized(image, short_side)), mask


def resized(image: Any, short_side: int) -> Any:
    """``[C, H, W]`` with that shorter side, or, of long strips, with a longer side of `LONGEST` times as much."""
    longest, sides = LONGEST * short_side, image.shape[-2:]
    if max(sides) > longest * min(sides):  # the shorter one would be rounded to 0
        size = [max(1, round(side * longest / max(sides))) for side in sides]
        return v2.functional.resize(image, size, antialias=True)
    return v2.functional.resize(image, [short_side], max_size=longest, antialias=True)


class CropOfSeveral(nn.Module):
    """A random crop in which no class takes too much, as mmsegmentation's (``cat_max_ratio``): the tenth try counts anyway.

    Of pictures smaller than the crop, all.

    Args:
        size: (height, width).
        largest_share: Of a crop's labeled pixels that one class may take.
    """

    def __init__(self, size: tuple[int, int], largest_share: float = 0.75) -> None:
        super().__init__()
        self.size, self.largest_share = size, largest_share

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        crop = v2.RandomCrop([min(pair) for pair in zip(self.size, image.shape[-2:])])
        for _ in range(10):
            found = crop(image, mask)
            counts = torch.bincount(found[1].flatten().long(), minlength=256)[:IGNORE_INDEX]
            if (counts > 0).sum() > 1 and counts.max() < self.largest_share * counts.sum():
                break
        return found


class RandomScale(nn.Module):
    """Resizes by a random factor, sides in proportion.

    Args:
        short_side: At factor 1. Default: as it is.
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
        # the exact nearest: torchvision's is off by half a pixel
        labels = F.interpolate(mask[None, None].as_subclass(torch.Tensor), size=image.shape[-2:], mode="nearest-exact")[0, 0]
        return image, tv_tensors.Mask(labels)


class PhotometricDistortion(nn.Module):
    """Random brightness, contrast, saturation and hue, each with probability one half; mmsegmentation's, by its formulas.

    Brightness is a shift of up to 32 gray levels, contrast and saturation (of hue, saturation and value) are factors of 0.5 to
    1.5, hue turns by up to 36 degrees; contrast comes before the colors or after them.
    """

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        """An image ``[3, H, W]`` in 8 bits."""
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
    """The largest channel stays, the others come as much nearer to it, or go as far away as 0 allows the smallest."""
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
    """Random scale, crop, flip and colors, then padding at the right and at the bottom: Segmenter's and mmsegmentation's.

    Args:
        crop: (height, width).
        short_side: Of the picture, in pixels, at scale 1. Default: as it is.
        scale: Smallest and largest.
        flip: Probability of a mirror image.
        photometric: As `PhotometricDistortion`.
    """
    steps: list[nn.Module] = [RandomScale(short_side, scale), CropOfSeveral(crop), v2.RandomHorizontalFlip(flip)]
    if photometric:
        steps.append(PhotometricDistortion())
    return v2.Compose([*steps, partial(_padded, crop)])


def _padded(size: tuple[int, int], image: Any, mask: Any) -> tuple[Any, Any]:
    """With gray, about what normalization makes 0, and with pixels to ignore."""
    bottom, right = (max(0, wanted - side) for wanted, side in zip(size, image.shape[-2:]))
    fill: Any = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE_INDEX}
    return v2.Pad([0, 0, right, bottom], fill=fill)(image, mask)
