"""Data sets whose classes are some of ImageNet's: which logits count, and which label a class folder has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.data.readers.reader import Reader
from torch import Tensor, nn

from .contract import check_logits

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ClassMap:
    """Classes of a data set among the 1,000 of ImageNet-1k, in timm's order (WordNet ids, sorted).

    Args:
        name: For messages.
        indices: Which logits count, ascending; the label of a class is its place among them.
        complete: Folders of all these classes must be there.
        alone: Folders of other classes are left out, not refused.
    """

    name: str
    indices: tuple[int, ...]
    complete: bool = True
    alone: bool = False

    @property
    def num_classes(self) -> int:
        """So many logits count."""
        return len(self.indices)

    def labels(self, folders: Iterable[str]) -> dict[str, int]:
        """``{folder: label}`` of folders called by WordNet id (``n01440764``) or by number in ImageNet-1k.

        Raises:
            ValueError: Folders that are no such class, or missing ones.
        """
        names = ImageNetInfo("imagenet-1k").label_names()
        places = {key: label for label, index in enumerate(self.indices) for key in (names[index], str(index))}
        found = {folder: places.get(folder.lstrip("0") or folder[:1], -1) for folder in folders}
        if self.alone:
            found = {folder: label for folder, label in found.items() if label >= 0}
        strangers = [folder for folder, label in found.items() if label < 0]
        missing = set(range(self.num_classes)) - set(found.values()) if self.complete else set()
        if strangers or missing:
            raise ValueError(
                f"{self.name} has folders of its {len(self.indices)} classes, named by WordNet id or by number in ImageNet-1k. "
                + (f"Not of these: {_some(strangers)}. " if strangers else "")
                + (f"Not there: {_some([names[self.indices[label]] for label in sorted(missing)])}." if missing else "")
            )
        return found

    def relabel(self, reader: Any) -> "Relabeled":
        """A reader of class folders, with the labels of this map.

        Raises:
            ValueError: As `labels`, or a reader without names of classes.
        """
        if getattr(reader, "class_to_idx", None) is None:
            raise ValueError(f"{self.name}: its classes are known by the names of folders, but this reader has none.")
        labels = self.labels(reader.class_to_idx)
        return Relabeled(SomeClasses(reader, labels) if self.alone else reader, labels)

    def restrict(self, model: nn.Module) -> nn.Module:
        """The model with these logits alone.

        Raises:
            ValueError: It is no model of ImageNet-1k.
        """
        classes = getattr(model, "num_classes", IMAGENET_CLASSES)
        if classes != IMAGENET_CLASSES:
            raise ValueError(f"{self.name} is for models of ImageNet's {IMAGENET_CLASSES} classes, but this one has {classes}.")
        return model if self.num_classes == classes else RestrictedModel(model, self.indices)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} ({len(names)})"


class Relabeled(Reader):
    """A reader with other labels.

    Args:
        reader: Of class folders.
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
        """The reader's own, with this label."""
        name, label, *size = self._reader.entry(index)
        return name, self._labels[label], *size

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._reader.filename(index, basename, absolute)


class SomeClasses(Reader):
    """The images of some class folders.

    Args:
        reader: Of class folders.
        classes: Names of folders.
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
        """The reader's own."""
        return self._reader.entry(self._indices[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._reader.filename(self._indices[index], basename, absolute)


class RestrictedModel(nn.Module):
    """Some of a model's logits.

    Args:
        model: Any classifier.
        indices: Of the logits that are kept.
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
    """The classes of ImageNet-1k that a data set has folders of.

    Raises:
        ValueError: As `ClassMap.labels`.
    """
    return ClassMap(
        name, tuple(sorted(ClassMap(name, tuple(range(IMAGENET_CLASSES)), complete=False).labels(folders).values()))
    )


def class_map(name: str) -> ClassMap:
    """By name: ``imagenet`` (any of its folders), ``imagenet-a``, ``imagenet-r`` (their 200 classes), ``imagenet-1k`` (all).

    Raises:
        ValueError: An unknown name.
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
    raise ValueError(f"There is no map of classes {name!r}; there are imagenet, imagenet-1k, imagenet-a, imagenet-r.")
