"""ReaL labels of the ImageNet validation images: reassessed, with any number of labels per image (arXiv 2006.07159)."""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import UNREADABLE_LABEL
from .imagenet_subsets import IMAGENET_CLASSES
from .statistics import wilson_interval

__all__ = ["count_real", "load_real"]

_REAL = "Use real.json of ReaL (arXiv 2006.07159), or leave the file out for timm's copy of it."


def load_real(names: Sequence[str], file: Path | None = None) -> list[list[int]]:
    """Return the reassessed labels of images (ReaL, arXiv 2006.07159). An image may have several labels, or none.

    Args:
        names: File names of the ImageNet validation set, which end in the number of the image:
            ``ILSVRC2012_val_00000293.JPEG``.
        file: ``real.json`` of ReaL: a list of lists of labels. Default: the copy in timm.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file does not hold ReaL labels, or a name does not end in a known number.

    Example:
        >>> load_real(["ILSVRC2012_val_00000002.JPEG"])
        [[970, 795]]
    """
    known = file or files("timm.data").joinpath("_info", "imagenet_real_labels.json")
    try:
        real = json.loads(known.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{known} must be a JSON file of ReaL labels, got an error: {error}. {_REAL}") from error
    _check_real(real, known)
    labels = []
    for name in names:
        number = re.search(r"(\d{8})\.\w+$", name)
        if number is None or not 1 <= int(number.group(1)) <= len(real):
            raise ValueError(
                f"Names must be those of ImageNet validation images in {known} (ILSVRC2012_val_00000001.JPEG), got {name}. Use "
                "the original file names."
            )
        labels.append(real[int(number.group(1)) - 1])
    return labels


def _check_real(real: Any, file: Any) -> None:
    """Check that the file holds a list of class indices per image."""
    if not isinstance(real, list) or not real:
        raise ValueError(f"{file} must hold a list of labels per image, [[65], [970, 795], …], got {str(real)[:40]}. {_REAL}")
    for number, labels in enumerate(real, 1):
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < IMAGENET_CLASSES for label in labels):
            raise ValueError(
                f"{file} must hold a list of whole numbers from 0 to {IMAGENET_CLASSES - 1} per image, got {str(labels)[:40]} "
                f"for image {number}. {_REAL}"
            )


def count_real(predicted: Tensor, labels: Tensor, real: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the top-1 accuracy with ReaL labels. Any label of an image is correct; images without labels do not count.

    Args:
        predicted: ``[n]`` predicted classes.
        labels: ``[n]`` original labels; -1 for images that could not be read.
        real: ReaL labels per image, as `load_real` returns them.

    Returns:
        ``n`` (number of images that count), ``top1`` in percent, and ``top1_interval``, its 95 % interval.

    Raises:
        ValueError: No image has a ReaL label.

    Example:
        >>> import torch
        >>> count_real(torch.tensor([3, 1]), torch.tensor([3, 0]), [[3, 4], []])["top1"]
        100.0
    """
    images = zip(real, predicted.tolist(), labels.tolist())
    right = [top in answers for answers, top, label in images if answers and label != UNREADABLE_LABEL]
    if not right:
        raise ValueError(f"At least one of the {len(real)} images must have a ReaL label, got none. Evaluate more images.")
    n = len(right)
    return {"n": n, "top1": 100 * sum(right) / n, "top1_interval": list(wilson_interval(sum(right), n))}
