"""A split as torch's data set: decoded, transformed, unreadable files named."""

import operator
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..utils.io import printable
from .decoding import CANNOT_READ, to_8_bits

UNREADABLE_LABEL = -1  # label of an image that could not be read


class Source(Protocol):
    """What timm's readers are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def filename(self, index: int) -> str:
        """What the image at ``index`` is called."""
        ...


def random_subset(count: int, wanted: int | None, seed: int) -> list[int] | None:
    """Numbers of ``wanted`` random images out of ``count``; None for all.

    Random, because the first of a class folder are of one class.
    """
    if wanted is None or wanted >= count:
        return None
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist())


class Unreadable:
    """Names of the images that could not be read, gathered from all worker processes in a file.

    Args:
        file: One line an image, appended; there is none until an image cannot be read. Default: in the temporary folder.
        split: Stands before the names, which are only told apart within a split.
    """

    def __init__(self, file: Path | None = None, split: str = "") -> None:
        if file is None:
            file = Path(tempfile.gettempdir()) / f"unreadable-{uuid.uuid4().hex}.txt"
        self.file, self.split = file, split

    def of(self, split: str) -> "Unreadable":
        """Gathered in the same file."""
        return Unreadable(self.file, split)

    def add(self, name: str, error: Exception) -> None:
        """Note an image, once."""
        name = f"{self.split}/{name}" if self.split else name
        if name in self.names():
            return
        line = printable(f"{name}\t{type(error).__name__}: {error}".replace("\n", " ").rstrip())
        with self.file.open("a", encoding="utf-8") as file:  # one short write: lines of several processes do not mix
            file.write(line + "\n")

    def names(self) -> list[str]:
        """Each once, in the order of their first mention."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(line.split("\t")[0] for line in lines))


def readable(labels: torch.Tensor) -> torch.Tensor:
    """``[B]`` bool, of what a loader gives: false for images that could not be read. ``labels`` are numbers or maps."""
    return (labels.long() != UNREADABLE_LABEL).view(len(labels), -1).any(dim=1)


def check_label(label: Any, num_classes: int, name: str = "") -> int:
    """Return ``label`` as an int, if there is such a class.

    Raises:
        ValueError: There is none.
    """
    called = name or "(its name is not known)"
    try:
        number = operator.index(label)
    except TypeError as error:
        raise ValueError(
            f"Image {called} has the label {label!r}, but labels must be whole numbers from 0 to {num_classes - 1}. Of Hugging "
            "Face data, name another column (data.label_column=NAME in a recipe, --label-column NAME in a command)."
        ) from error
    if not 0 <= number < num_classes:
        raise ValueError(
            f"Image {called} has label {number}, but with {num_classes} classes labels run from 0 to {num_classes - 1}."
        )
    return number


class Images(Dataset):
    """Images and labels of a reader.

    Args:
        reader: Gives ``(file or PIL image, label)``.
        num_classes: Labels must lie in 0 to ``num_classes - 1``.
        indices: Which, in which order. Default: all.
        channels: 1 for gray, 3 for color.
        on_unreadable: ``stop``: an error; ``replace``: the next one in its place (training); ``ignore``: an empty image with
            the label -1, which counts nowhere (evaluation).
        unreadable: Where they are noted.
        transform: PIL image to array.
    """

    def __init__(
        self,
        reader: Source,
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
            raise ValueError(f"on_unreadable must be 'stop', 'replace' or 'ignore', got {on_unreadable!r}.")
        self.on_unreadable = on_unreadable
        self.unreadable = unreadable or Unreadable()
        self._mode = {1: "L", 3: "RGB"}.get(channels)
        if self._mode is None:
            raise ValueError(f"data.input_size: {channels} channels; pictures have 1 (gray) or 3 (color).")

    @property
    def classes(self) -> dict[str, int] | None:
        """``{name: label}``, where the reader knows names."""
        return getattr(self.reader, "class_to_idx", None)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """What the image at ``index`` is called."""
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
        """The error of a split of which no image can be read, with the reason of the first."""
        problem = ""
        try:
            self._open(self.indices[0])
        except CANNOT_READ as error:
            problem = f": {error}"
        return ValueError(
            f"None of the {len(self)} images can be read, {self.name(0)}{problem} for one; see {self.unreadable.file}."
        )

    def content(self, index: int) -> bytes:
        """Label, size and pixels of an image as it is stored, without the transform; no pixels if it cannot be read."""
        try:
            image, label = self._open(self.indices[index])
        except CANNOT_READ:
            return repr((UNREADABLE_LABEL, None)).encode()
        label = check_label(label, self.num_classes, self.name(index))
        return repr((label, image.size)).encode() + image.tobytes()

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Name, label and size of each image, without decoding it; the name alone if the reader knows no more."""
        entry = getattr(self.reader, "entry", lambda index: (self.reader.filename(index),))
        return map(entry, self.indices)

    def _get(self, index: int) -> tuple[Any, int]:
        try:
            image, label = self._open(self.indices[index])
        except CANNOT_READ as error:
            if self.on_unreadable == "stop":
                raise ValueError(
                    f"Cannot read image {self.name(index)}: {error}. Repair or remove it, or have such images left out "
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
            return to_8_bits(image, self._mode or "RGB"), label  # decodes, so that a broken image shows here
