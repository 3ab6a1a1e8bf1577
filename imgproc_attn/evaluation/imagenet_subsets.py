"""Data sets with some of the classes of ImageNet: the logits that count, and the labels of class folders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.data.readers.reader import Reader
from torch import Tensor, nn

from .contract import check_logits

__all__ = ["IMAGENET_CLASSES", "ClassMap", "Relabeled", "RestrictedModel", "SomeClasses", "class_map", "classes_of"]

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ClassMap:
    """Classes of a data set among the 1,000 of ImageNet-1k, in the order of timm (sorted WordNet ids).

    Args:
        name: Name of the data set, for messages.
        indices: Indices of the logits that count, ascending. The label of a class is its position among them.
        complete: Whether folders of all these classes must exist.
        skip_others: Skip the folders of other classes. Otherwise they are an error.

    Example:
        >>> ClassMap("three classes", (0, 1, 7)).labels(["n01440764", "1", "7"])
        {'n01440764': 0, '1': 1, '7': 2}
    """

    name: str
    indices: tuple[int, ...]
    complete: bool = True
    skip_others: bool = False

    @property
    def num_classes(self) -> int:
        """Number of logits that count."""
        return len(self.indices)

    def labels(self, folders: Iterable[str]) -> dict[str, int]:
        """Return ``{folder: label}`` for folders named by WordNet id (``n01440764``) or by number in ImageNet-1k.

        Raises:
            ValueError: A folder is not one of these classes, or the folder of a class is missing.
        """
        names = ImageNetInfo("imagenet-1k").label_names()
        known = {key: label for label, index in enumerate(self.indices) for key in (names[index], str(index))}
        labels = {folder: known.get(folder.lstrip("0") or folder[:1], -1) for folder in folders}
        if self.skip_others:
            labels = {folder: label for folder, label in labels.items() if label >= 0}
        unknown = [folder for folder, label in labels.items() if label < 0]
        missing = set(range(self.num_classes)) - set(labels.values()) if self.complete else set()
        if unknown or missing:
            problems = [f"unknown folders {_some(unknown)}"] if unknown else []
            problems += [f"no folder for {_some([names[self.indices[label]] for label in sorted(missing)])}"] if missing else []
            raise ValueError(
                f"{self.name} must have one folder per class ({len(self.indices)} classes), got {' and '.join(problems)}. "
                "Name the folders by WordNet id or by number in ImageNet-1k."
            )
        return labels

    def relabel(self, reader: Any) -> "Relabeled":
        """Return a reader of the class folders with the labels of this map.

        Args:
            reader: Reader of class folders.

        Raises:
            ValueError: A folder is unknown or missing (see `labels`), or the reader has no class names.
        """
        if getattr(reader, "class_to_idx", None) is None:
            raise ValueError(f"{self.name}: the reader must have class names, got none. Use a reader of class folders.")
        labels = self.labels(reader.class_to_idx)
        return Relabeled(SomeClasses(reader, labels) if self.skip_others else reader, labels)

    def restrict(self, model: nn.Module) -> nn.Module:
        """Return the model with only the logits that count.

        Raises:
            ValueError: The model does not have the classes of ImageNet-1k.
        """
        classes = getattr(model, "num_classes", IMAGENET_CLASSES)
        if classes != IMAGENET_CLASSES:
            raise ValueError(
                f"{self.name}: the model must have the {IMAGENET_CLASSES} classes of ImageNet-1k, got {classes} classes. Leave "
                "the class map out."
            )
        return model if self.num_classes == classes else RestrictedModel(model, self.indices)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} ({len(names)})"


class Relabeled(Reader):
    """Reader that replaces the labels of another reader.

    Args:
        reader: Reader of class folders.
        labels: ``{folder: label}``.
    """

    def __init__(self, reader: Any, labels: Mapping[str, int]) -> None:
        super().__init__()
        self._reader, self.class_to_idx = reader, dict(labels)
        self._labels = {old: labels[name] for name, old in reader.class_to_idx.items()}

    def __getitem__(self, index: int) -> tuple[Any, int]:
        source, label = self._reader[index]
        return source, self._labels[label]

    def __len__(self) -> int:
        return len(self._reader)

    def entry(self, index: int) -> tuple[Any, ...]:
        """Return the entry of the inner reader with the new label."""
        name, label, *size = self._reader.entry(index)
        return name, self._labels[label], *size

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._reader.filename(index, basename, absolute)


class SomeClasses(Reader):
    """Reader of selected class folders of another reader.

    Args:
        reader: Reader of class folders.
        classes: Names of the folders to keep.
    """

    def __init__(self, reader: Any, classes: Iterable[str]) -> None:
        super().__init__()
        wanted = {reader.class_to_idx[name] for name in classes if name in reader.class_to_idx}
        self._reader = reader
        self._indices = [i for i, label in enumerate(reader.labels) if label in wanted]
        self.class_to_idx = {name: label for name, label in reader.class_to_idx.items() if label in wanted}

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._reader[self._indices[index]]

    def __len__(self) -> int:
        return len(self._indices)

    def entry(self, index: int) -> tuple[Any, ...]:
        """Return the entry of the inner reader."""
        return self._reader.entry(self._indices[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._reader.filename(self._indices[index], basename, absolute)


class RestrictedModel(nn.Module):
    """Model that returns only some logits of another model.

    Args:
        model: Any classifier.
        indices: Indices of the logits to keep.

    Example:
        >>> RestrictedModel(nn.Flatten(), [0, 2])(torch.tensor([[1.0, 2.0, 3.0]])[..., None, None])
        tensor([[1., 3.]])
    """

    indices: Tensor

    def __init__(self, model: nn.Module, indices: Iterable[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("indices", torch.tensor(list(indices)), persistent=False)
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        return check_logits(self.model(images), images)[:, self.indices]


def _indices_of_timm(file: str) -> tuple[int, ...]:
    text = files("timm.data").joinpath("_info", file).read_text(encoding="utf-8")
    return tuple(sorted(int(line) for line in text.split()))


def classes_of(name: str, folders: Iterable[str]) -> ClassMap:
    """Return a class map of the classes of ImageNet-1k that have a folder.

    Args:
        name: Name of the data set, for messages.
        folders: Names of the class folders.

    Raises:
        ValueError: A folder is not a class of ImageNet-1k.
    """
    return ClassMap(
        name, tuple(sorted(ClassMap(name, tuple(range(IMAGENET_CLASSES)), complete=False).labels(folders).values()))
    )


def class_map(name: str) -> ClassMap:
    """Return the class map of a name.

    Args:
        name: ``imagenet`` (any of its folders), ``imagenet-1k`` (all folders), ``imagenet-a`` or ``imagenet-r`` (their 200
            classes).

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> class_map("imagenet-a").num_classes
        200
    """
    everything = tuple(range(IMAGENET_CLASSES))
    if name == "imagenet":
        return ClassMap("imagenet", everything, complete=False)
    if name == "imagenet-1k":
        return ClassMap("imagenet-1k", everything)
    if name == "imagenet-a":
        return ClassMap("ImageNet-A", _indices_of_timm("imagenet_a_indices.txt"))
    if name == "imagenet-r":
        return ClassMap("ImageNet-R", _indices_of_timm("imagenet_r_indices.txt"))
    raise ValueError(
        f"The class map must be one of imagenet, imagenet-1k, imagenet-a, imagenet-r, got {name!r}. Check the spelling."
    )
