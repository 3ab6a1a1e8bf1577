"""Map-style torch data set of a split. It decodes and transforms images, and records the unreadable ones."""

import operator
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..utils.io import printable
from .decoding import CANNOT_READ, to_8_bits

__all__ = ["UNREADABLE_LABEL", "Images", "Unreadable", "check_label", "random_subset", "readable"]

UNREADABLE_LABEL = -1  # The label of an image that cannot be read. It is not a class, so the image is not counted.


def random_subset(count: int, wanted: int | None, seed: int) -> list[int] | None:
    """Choose ``wanted`` random images out of ``count``.

    The choice is random because the first images of a folder all belong to the first class.

    Returns:
        Sorted indices, or None if all images are wanted.

    Example:
        >>> random_subset(count=5, wanted=5, seed=0) is None
        True
        >>> len(random_subset(count=100, wanted=3, seed=0))
        3
    """
    if wanted is None or wanted >= count:
        return None
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist())


class Unreadable:
    """List of the unreadable images, which all worker processes write to one file.

    Args:
        file: Text file with one line per image. It does not exist until an image cannot be read. Default: a file in the
            temporary folder.
        split: Prefix of the names, which are unique only within a split.
    """

    def __init__(self, file: Path | None = None, split: str = "") -> None:
        if file is None:
            file = Path(tempfile.gettempdir()) / f"unreadable-{uuid.uuid4().hex}.txt"
        self.file, self.split = file, split

    def of(self, split: str) -> "Unreadable":
        """Return the list of another split, in the same file."""
        return Unreadable(self.file, split)

    def add(self, name: str, error: Exception) -> None:
        """Add an image, unless it is listed already."""
        name = f"{self.split}/{name}" if self.split else name
        if name in self.names():
            return
        line = printable(f"{name}\t{type(error).__name__}: {error}".replace("\n", " ").rstrip())
        with self.file.open("a", encoding="utf-8") as file:  # One short write keeps the lines of several processes apart.
            file.write(line + "\n")

    def names(self) -> list[str]:
        """Return each name once, in the order of its first line."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(line.split("\t")[0] for line in lines))


def readable(labels: torch.Tensor) -> torch.Tensor:
    """Return which images of a batch could be read.

    Args:
        labels: Labels ``[B]`` or label maps ``[B, H, W]`` of a loader.

    Returns:
        Boolean tensor ``[B]``, False for unreadable images.

    Example:
        >>> readable(torch.tensor([3, UNREADABLE_LABEL]))
        tensor([ True, False])
    """
    known = (labels if labels.is_floating_point() else labels.long()) != UNREADABLE_LABEL
    return known if known.ndim == 1 else known.flatten(1).any(dim=1)


def check_label(label: Any, num_classes: int, name: str = "") -> int:
    """Return ``label`` as an int if it is the index of a class.

    Args:
        label: Any value of a reader.
        num_classes: Number of classes.
        name: Name of the image, for the message.

    Raises:
        ValueError: The label is not an integer in 0 to ``num_classes - 1``.
    """
    rule = f"must be a whole number from 0 to {num_classes - 1} with {num_classes} classes, got {label!r}"
    shown = name or "(name unknown)"
    try:
        number = operator.index(label)
    except TypeError as error:
        raise ValueError(
            f"The label of image {shown} {rule}. For Hugging Face data, name another column (data.label_column=NAME in a "
            "recipe, --label-column NAME in a command)."
        ) from error
    if not 0 <= number < num_classes:
        raise ValueError(
            f"The label of image {shown} {rule}. Correct the label, or the number of classes (data.num_classes in a recipe)."
        )
    return number


class Images(Dataset):
    """Map-style data set of the images and labels of a reader.

    Args:
        reader: Reader, see `open_images`. Its items are pairs of an encoded file or a PIL image, and a label.
        num_classes: Number of classes. Labels must be in 0 to ``num_classes - 1``.
        indices: Indices of the images to use, in order. Default: all images.
        channels: 1 for gray, 3 for color.
        on_unreadable: Treatment of an unreadable image. ``stop`` raises an error. ``replace`` returns the next readable image
            (for training). ``ignore`` returns a blank image with the label -1, which is not counted (for evaluation).
        unreadable: List that unreadable images are added to. Default: a file in the temporary folder.
        transform: Function from a PIL image to an array. Default: return the PIL image.

    Raises:
        ValueError: ``on_unreadable`` or ``channels`` has another value. On access: an image cannot be read, or its label is
            not in range.

    Example:
        >>> from imgproc_attn.data import open_images
        >>> images = Images(open_images("digits", "", "test"), num_classes=10, channels=1)
        >>> image, label = images[0]
        >>> len(images), image.size
        (360, (8, 8))
    """

    def __init__(
        self,
        reader: Any,
        num_classes: int,
        indices: Sequence[int] | None = None,
        channels: int = 3,
        on_unreadable: Literal["stop", "replace", "ignore"] = "stop",
        unreadable: Unreadable | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.reader, self.num_classes, self.transform = reader, num_classes, transform
        self.indices = range(len(reader)) if indices is None else indices
        if on_unreadable not in ("stop", "replace", "ignore"):
            raise ValueError(f"on_unreadable must be 'stop', 'replace' or 'ignore', got {on_unreadable!r}. Give one of them.")
        self.on_unreadable = on_unreadable
        self.unreadable = unreadable or Unreadable()
        self._mode = {1: "L", 3: "RGB"}.get(channels)
        if self._mode is None:
            raise ValueError(f"data.input_size must have 1 (gray) or 3 (color) channels, got {channels}. Change the channels.")

    @property
    def classes(self) -> dict[str, int] | None:
        """Class indices ``{name: label}``; None if the reader has no class names."""
        return getattr(self.reader, "class_to_idx", None)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name of the image at ``index``."""
        return printable(self.reader.filename(self.indices[index]) or f"image-{self.indices[index]}")

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.on_unreadable != "replace":
            return self._get(index)
        for step in range(len(self)):
            image, label = self._get((index + step) % len(self))
            if label != UNREADABLE_LABEL:
                return image, label
        raise self.none_readable()

    def none_readable(self) -> ValueError:
        """Return the error for a split without a readable image. Its message gives the reason for the first image."""
        problem = ""
        try:
            self._open(self.indices[0])
        except CANNOT_READ as error:
            problem = f": {error}"
        return ValueError(
            f"At least one of the {len(self)} images must be readable, got none ({self.name(0)}{problem}). Repair the images "
            f"that {self.unreadable.file} lists."
        )

    def content(self, index: int) -> bytes:
        """Return label, size and pixels of an image as stored, without the transform. An unreadable image has no pixels."""
        try:
            image, label = self._open(self.indices[index])
        except CANNOT_READ:
            return repr((UNREADABLE_LABEL, None)).encode()
        label = check_label(label, self.num_classes, self.name(index))
        return repr((label, image.size)).encode() + image.tobytes()

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over name, label and size of each image without decoding it; over names if the reader has no more."""
        entry = getattr(self.reader, "entry", lambda index: (self.reader.filename(index),))
        return map(entry, self.indices)

    def _get(self, index: int) -> tuple[Any, int]:
        try:
            image, label = self._open(self.indices[index])
        except CANNOT_READ as error:
            if self.on_unreadable == "stop":
                raise ValueError(
                    f"Cannot read image {self.name(index)}: {error}. Repair or remove it, or skip such images "
                    "(data.on_broken_image=skip in a recipe, --skip-broken in a command)."
                ) from error
            self.unreadable.add(self.name(index), error)
            image, label = Image.new(self._mode or "RGB", (256, 256)), UNREADABLE_LABEL
        else:
            label = check_label(label, self.num_classes, self.name(index))
        return (image if self.transform is None else self.transform(image)), label

    def _open(self, index: int) -> tuple[Image.Image, Any]:
        source, label = self.reader[index]
        with source, source if isinstance(source, Image.Image) else Image.open(source) as image:
            return to_8_bits(image, self._mode or "RGB"), label  # Decodes, so that a broken image raises its error here.
