"""Samples keep their ids through loaders, batches and processes: every random draw and every result belongs to an id."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import Images, PreprocessingLike, StreamedImages, evaluation_loader, readable
from ..utils.io import printable
from .contract import check_pixels

__all__ = [
    "Batch",
    "Numbered",
    "SampleSet",
    "Samples",
    "StreamSamples",
    "TensorSamples",
    "images_of",
    "in_memory",
    "names_hash",
    "only_readable",
]

NUM_HASHED = 8  # images whose content tells data sets of equal names apart

Batch = tuple[Tensor, Tensor, Tensor]  # images in [0, 1], labels, ids


class Numbered(Protocol):
    """A data set whose images have numbers and names, such as `imgproc_attn.data.Images`."""

    transform: Any

    @property
    def indices(self) -> Sequence[int]:
        """Numbers of the images in the reader."""
        ...

    @property
    def classes(self) -> Mapping[str, int] | None:
        """``{name: label}``; None if names are unknown."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def name(self, index: int) -> str:
        """Return the name of an image."""
        ...

    def content(self, index: int) -> bytes:
        """Return bytes that are equal for equal images with equal labels."""
        ...


def names_hash(names: Sequence[str]) -> str:
    """Return a hash of names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


class SampleSet(ABC):
    """Base class of samples with ids.

    Attributes:
        ids: ``[n]`` int64 ids in the data set. A subset keeps the ids of the whole data set.
        corruption: Corruption that is applied when images are read. None: no corruption.
    """

    ids: Tensor
    corruption: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def name(self, sample_id: int) -> str:
        """Return the name of a sample."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """``n``, ``names_sha256`` and ``content_sha256``: equal for equal samples in equal order."""

    @property
    @abstractmethod
    def class_names(self) -> dict[int, str]:
        """``{label: name}``, as far as names are known."""

    @abstractmethod
    def without(self, ids: Tensor) -> "SampleSet":
        """Return all samples except those with these ids."""

    @abstractmethod
    def share(self, rank: int, size: int) -> "SampleSet":
        """Return every ``size``-th sample, starting at ``rank``."""

    @abstractmethod
    def batches(self, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        """Yield images in [0, 1], labels and ids on the device. Unreadable images have the label -1."""

    def only(self, ids: Tensor) -> "SampleSet":
        """Return the samples with these ids."""
        return self.without(self.ids[~torch.isin(self.ids, ids)])

    def random(self, count: int, seed: int) -> "SampleSet":
        """Return at most ``count`` random samples."""
        return self.only(self.ids[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]])

    def none_readable(self) -> ValueError:
        """Return the error for samples without a readable image."""
        if not len(self):
            return ValueError("There must be at least 1 image to evaluate on, got 0. Give other images.")
        return ValueError(f"At least one of the {len(self)} images must be readable, got none. Give other images.")

    def corrupted(self, corruption: Any) -> "SampleSet":
        """Return the same samples with a corruption that is applied when they are read. The identity does not change.

        Raises:
            ValueError: These samples cannot be corrupted.
        """
        raise ValueError(
            f"Samples to corrupt must be known by number, got {type(self).__name__}. Use a reader of numbered images."
        )


class Samples(SampleSet, Dataset):
    """Samples of a data set, read as 8-bit images in the input size of a model.

    Args:
        images: Data set of numbered images.
        corruption: Function ``corrupt(pixels, sample_id)`` of 8-bit pixels. It runs in the processes that read.
        positions: Positions of the samples in ``images``. Default: all.
    """

    def __init__(self, images: Numbered, corruption: Any = None, positions: Sequence[int] | None = None) -> None:
        self.images, self.corruption = images, corruption
        self._positions = range(len(images)) if positions is None else positions
        self.ids = torch.tensor([images.indices[i] for i in self._positions], dtype=torch.int64)

    def without(self, ids: Tensor) -> Self:
        kept = (~torch.isin(self.ids, ids)).nonzero()[:, 0].tolist()
        return type(self)(self.images, self.corruption, [self._positions[i] for i in kept])

    def corrupted(self, corruption: Any) -> Self:
        samples = type(self)(self.images, corruption, self._positions)
        samples.__dict__ |= {"names": self.names, "identity": self.identity}  # read once for all corruptions
        return samples

    def none_readable(self) -> ValueError:
        return self.images.none_readable() if len(self) and isinstance(self.images, Images) else super().none_readable()

    def share(self, rank: int, size: int) -> Self:
        return type(self)(self.images, self.corruption, self._positions[rank::size])

    @cached_property
    def names(self) -> list[str]:
        """Names of the samples in the order of `ids`. Samples with equal names get their id as a suffix."""
        names = [self.images.name(i) for i in self._positions]
        count = Counter(names)
        return [name if count[name] == 1 else f"{name}#{i}" for name, i in zip(names, self.ids.tolist())]

    @cached_property
    def _name_of(self) -> dict[int, str]:
        return dict(zip(self.ids.tolist(), self.names))

    def name(self, sample_id: int) -> str:
        return self._name_of[sample_id]

    @cached_property
    def identity(self) -> dict[str, Any]:
        content = hashlib.sha256()
        for i in sorted({len(self) * part // NUM_HASHED for part in range(NUM_HASHED)}) if len(self) else []:
            content.update(self.images.content(self._positions[i]))
        return {"n": len(self), "names_sha256": names_hash(self.names), "content_sha256": content.hexdigest()}

    @property
    def class_names(self) -> dict[int, str]:
        return {label: printable(name) for name, label in (self.images.classes or {}).items()}

    @property
    def transform(self) -> Callable[..., Any] | None:
        """Transform of the images. Loaders set it."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Callable[..., Any]) -> None:
        self.images.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels, label = self.images[self._positions[index]]
        pixels = np.asarray(pixels)
        if self.corruption is None:
            return pixels, label
        corrupted = self.corruption.corrupt(pixels, int(self.ids[index]))
        return check_pixels(getattr(self.corruption, "name", type(self.corruption).__name__), corrupted, pixels), label

    def batches(self, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        if len(self) == 0:
            return
        loader = evaluation_loader(self, preprocessing.without_normalization(), batch_size, min(workers, len(self)), device)
        try:
            for (images, labels), ids in zip(loader, self.ids.split(batch_size)):
                yield images, labels, ids.to(device)
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise ValueError("Images of one batch must have one size, got different sizes. Give --batch-size 1.") from error


class TensorSamples(SampleSet):
    """Samples in memory.

    Args:
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n, …]``.
        ids: ``[n]``. Default: 0 to n - 1.
        names: ``{id: name}``. Default: the ids.
        class_names: ``{label: name}``.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor | None = None,
        names: Mapping[int, str] | None = None,
        class_names: Mapping[int, str] | None = None,
    ) -> None:
        self._images, self._labels, self._names = images, labels, names
        self._all_ids = torch.arange(len(images)) if ids is None else ids
        self._class_names = dict(class_names or {})
        self._positions = torch.arange(len(images))
        self.ids = self._all_ids

    @property
    def images(self) -> Tensor:
        """``[n, C, H, W]`` images of these samples, copied, without the corruption."""
        return self._images[self._positions]

    @property
    def labels(self) -> Tensor:
        """``[n, …]`` labels of these samples."""
        return self._labels[self._positions]

    def name(self, sample_id: int) -> str:
        return str(sample_id) if self._names is None else self._names[sample_id]

    @cached_property
    def identity(self) -> dict[str, Any]:
        content = hashlib.sha256()
        for part in self._positions.split(256):
            content.update(self._images[part].detach().cpu().numpy().tobytes())
            content.update(self._labels[part].cpu().numpy().tobytes())
        names = names_hash([self.name(i) for i in self.ids.tolist()])
        return {"n": len(self), "names_sha256": names, "content_sha256": content.hexdigest()}

    @property
    def class_names(self) -> dict[int, str]:
        return self._class_names

    def _at(self, kept: Any) -> "TensorSamples":
        """Return some of these samples, with the same tensors in memory."""
        samples = TensorSamples(self._images, self._labels, self._all_ids, self._names, self._class_names)
        samples.corruption, samples._positions = self.corruption, self._positions[kept]
        samples.ids = samples._all_ids[samples._positions]
        return samples

    def without(self, ids: Tensor) -> "TensorSamples":
        return self._at(~torch.isin(self.ids, ids))

    def share(self, rank: int, size: int) -> "TensorSamples":
        return self._at(slice(rank, None, size))

    def corrupted(self, corruption: Any) -> "TensorSamples":
        samples = self._at(slice(None))
        samples.corruption = corruption
        samples.__dict__["identity"] = self.identity  # hashed once for all corruptions
        return samples

    def batches(self, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        if len(self) == 0:  # split would give one empty batch
            return
        for part in self._positions.split(batch_size):
            images, ids = self._images[part], self._all_ids[part]
            if self.corruption is not None:
                images = self.corruption(images, ids)
            yield images.to(device), self._labels[part].to(device), ids


class StreamSamples(SampleSet):
    """Samples of a stream. Their ids are the numbers in the order of reading.

    The order depends on the number of workers. Therefore, samples of a stream cannot be corrupted or selected by id, and every
    pass starts at the first image.

    Args:
        images: Stream of images and labels.
        source: Name, split and columns of the data. They distinguish this stream from others.
        first: Number of samples to read from the start. Default: all.
    """

    def __init__(self, images: StreamedImages, source: Mapping[str, Any] | None = None, first: int | None = None) -> None:
        self.images, self._source, self._first = images, dict(source or {}), first
        self.ids = torch.arange(images.announced if first is None else first)  # a guess: streams may give more or fewer

    def name(self, sample_id: int) -> str:
        return str(sample_id)

    @property
    def identity(self) -> dict[str, Any]:
        entries = [str(self._source), *map(str, self.images.entries())]
        return {"n": self.images.announced, "names_sha256": names_hash(entries), "content_sha256": ""}

    @property
    def class_names(self) -> dict[int, str]:
        return {label: printable(name) for name, label in (self.images.classes or {}).items()}

    def without(self, ids: Tensor) -> "StreamSamples":
        if len(ids):
            raise ValueError(
                f"The number of samples to leave out of a stream must be 0, got {len(ids)}. Use a reader of numbered images."
            )
        return self

    def random(self, count: int, seed: int) -> "StreamSamples":
        """Return the first ``count`` samples. Random samples would need another pass through the stream."""
        return StreamSamples(self.images, self._source, count)

    def share(self, rank: int, size: int) -> "StreamSamples":
        if size > 1:
            raise ValueError(
                f"A stream must be evaluated in one process, because it cannot be split exactly, got {size} processes. Start "
                "the command without torchrun."
            )
        return self

    def batches(self, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        start, loader = 0, preprocessing.without_normalization()
        for images, labels in evaluation_loader(self.images, loader, batch_size, workers, device):
            left = len(images) if self._first is None else min(len(images), self._first - start)
            yield images[:left], labels[:left], torch.arange(start, start + left)
            start += left
            if start == self._first:
                return


def only_readable(batch: Batch) -> Batch:
    """Return a batch without the images that could not be read."""
    kept = readable(batch[1])
    return batch[0][kept], batch[1][kept], batch[2][kept.to(batch[2].device)]


def images_of(samples: SampleSet, preprocessing: PreprocessingLike, device: torch.device, ids: Tensor) -> Batch:
    """Return the readable images among the samples with these ids as one batch. All images must have one size."""
    return only_readable(next(samples.only(ids).batches(preprocessing, max(len(ids), 1), 0, device)))


def in_memory(
    samples: SampleSet, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device
) -> TensorSamples:
    """Read all samples once, and keep the readable ones in memory.

    Raises:
        ValueError: None of the samples is readable.
    """
    batches = [only_readable(batch) for batch in samples.batches(preprocessing, batch_size, workers, device)]
    batches = [batch for batch in batches if len(batch[0])]
    if not batches:
        raise samples.none_readable()
    images, labels, ids = (torch.cat(parts) for parts in zip(*batches))
    names = {i: samples.name(i) for i in ids.tolist()}
    return TensorSamples(images.clamp(0, 1), labels, ids.cpu(), names, samples.class_names)
