"""ReaL labels: ImageNet's validation images labeled again, with any number of labels per image (arXiv 2006.07159)."""

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

_REAL = "Use real.json of ReaL (arXiv 2006.07159), or leave the file out for timm's copy of it."


def load_real(names: Sequence[str], file: Path | None = None) -> list[list[int]]:
    """The reassessed labels of images (ReaL, arXiv 2006.07159); an image may have several, or none.

    Args:
        names: Files of the ImageNet validation set, which end in the number of the image: ``ILSVRC2012_val_00000293.JPEG``.
        file: ``real.json`` of that work: a list of lists of labels. Default: timm's copy.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is none of theirs, or a name has no number that it knows.
    """
    known = file or files("timm.data").joinpath("_info", "imagenet_real_labels.json")
    try:
        real = json.loads(known.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{known} is no file of ReaL labels: {error}") from error
    _check_real(real, known)
    labels = []
    for name in names:
        number = re.search(r"(\d{8})\.\w+$", name)
        if number is None or not 1 <= int(number.group(1)) <= len(real):
            raise ValueError(f"{name}: not the name of an ImageNet validation image that {known} knows (…_val_00000001.JPEG).")
        labels.append(real[int(number.group(1)) - 1])
    return labels


def _check_real(real: Any, file: Any) -> None:
    """Refuse labels that no prediction could equal."""
    if not isinstance(real, list) or not real:
        raise ValueError(f"{file} must hold a list of labels per image, [[65], [970, 795], …], got {str(real)[:40]}. {_REAL}")
    for number, labels in enumerate(real, 1):
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < IMAGENET_CLASSES for label in labels):
            raise ValueError(
                f"{file} must hold a list of whole numbers from 0 to {IMAGENET_CLASSES - 1} per image, got {str(labels)[:40]} "
                f"for image {number}. {_REAL}"
            )


def count_real(predicted: Tensor, labels: Tensor, real: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Top-1 by `load_real`: right is any of an image's labels; images without one do not count.

    Args:
        predicted: ``[n]`` classes.
        labels: ``[n]``; -1 for images that could not be read.
        real: Labels of each.

    Raises:
        ValueError: No image has a label.
    """
    given = zip(real, predicted.tolist(), labels.tolist())
    right = [top in answers for answers, top, label in given if answers and label != UNREADABLE_LABEL]
    if not right:
        raise ValueError(f"None of the {len(real)} images has a ReaL label.")
    n = len(right)
    return {"n": n, "top1": 100 * sum(right) / n, "top1_interval": list(wilson_interval(sum(right), n))}
