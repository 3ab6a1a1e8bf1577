"""Loaders of training and evaluation: timm's transforms, collation and prefetching around torch's `DataLoader`.

timm's own ``create_loader`` takes no sampler. Here the order is a function of seed and epoch alone, the same for any number of
processes, and evaluation covers each image once without padding: what exact resuming and exact counts need.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from .images import Images
from .streams import StreamedImages


class Processes(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    world: int


ALONE = Processes(0, 1)


class Preparation(NamedTuple):
    """How a model wants its images; the names are timm's.

    Attributes:
        input_size: ``(channels, height, width)``.
        mean: Subtracted from images in [0, 1].
        std: What they are divided by.
        interpolation: Of resizing.
        crop_pct: For evaluation the short side is resized to ``input_size / crop_pct``, and the centre cropped.
        crop_mode: ``center``; or ``squash``, both sides resized; or ``border``, the long side resized, the rest filled.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preparation":
        """From timm's data configuration, or a model's ``pretrained_cfg``."""
        size, mean, std = (tuple(config[name]) for name in ("input_size", "mean", "std"))
        return cls(size, mean, std, config["interpolation"], config["crop_pct"], config.get("crop_mode", "center"))

    @classmethod
    def for_channels(cls, config: Mapping[str, Any], channels: int) -> dict[str, Any]:
        """The configuration with statistics for that many channels: their average, as timm does it, if they are for others."""
        known = {key: config[key] for key in ("mean", "std") if key in config and len(config[key]) != channels}
        return {**config, **{key: (statistics.fmean(values),) * channels for key, values in known.items()}}

    def without_normalisation(self) -> "Preparation":
        """The same images, in [0, 1]."""
        channels = self.input_size[0]
        return self._replace(mean=(0.0,) * channels, std=(1.0,) * channels)

    def transform(self) -> Callable[[Any], Any]:
        """timm's, for evaluation: a picture resized and cropped, in 8 bits."""
        return create_transform(
            self.input_size,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,
        )


class Prepares(Protocol):
    """What prepares pictures for evaluation: `Preparation`, or the likes of it for pictures with label maps."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from images in [0, 1]; one value a channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """What they are divided by."""
        ...

    def transform(self) -> Callable[..., Any]:
        """Of what a data set holds, in 8 bits."""
        ...


def training_loader(
    images: Images | IterableDataset,
    preparation: Prepares,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes = ALONE,
    repeats: int = 1,
    erasing: float = 0.0,
) -> PrefetchLoader:
    """Shuffled whole batches on the device, normalised.

    Before each epoch call ``loader.sampler.set_epoch``; of the images of update ``i``, this process takes every
    ``processes.world``-th.

    Args:
        images: With their transform set.
        preparation: Of which the normalisation is used.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        processes: Which this is.
        repeats: Each image so many times.
        erasing: Probability of random erasing.

    Raises:
        ValueError: Fewer images than one batch of all processes.
    """
    sampler: Any = None
    if not isinstance(images, IterableDataset):
        total = batch_size * processes.world
        if len(images) < total:
            raise ValueError(
                f"run.batch_size needs {total} images at a time, but there are {len(images)} for training; lower it."
            )
        if repeats > 1:
            sampler = RepeatAugSampler(images, processes.world, processes.rank, num_repeats=repeats, selected_round=0)
        else:
            sampler = DistributedSampler(images, processes.world, processes.rank, drop_last=True)
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=True)
    return _prefetch(loader, preparation, device, re_prob=erasing, re_mode="pixel")


def evaluation_loader(
    images: Any,
    preparation: Prepares,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> PrefetchLoader:
    """All images in order, prepared and normalised; each in exactly one process.

    Args:
        images: Whose ``transform`` becomes the preparation's: `Images`, or what has one likewise.
        preparation: Size, resizing and normalisation.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        processes: Which this is.

    Raises:
        ValueError: A set that can only be iterated over, in several processes; or fewer images than processes.
    """
    images.transform = preparation.transform()
    sampler = None
    if not isinstance(images, IterableDataset):
        sampler = range(processes.rank, len(images), processes.world)
        if len(images) < processes.world:
            raise ValueError(f"There are {len(images)} images for {processes.world} processes; evaluate in fewer.")
    elif processes.world > 1:
        raise ValueError(
            "A set that can only be iterated over cannot be shared out exactly; evaluate it in one process, without torchrun."
        )
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=False)
    return _prefetch(loader, preparation, device, _CountedBatches if isinstance(images, StreamedImages) else _Batches)


class _Batches(PrefetchLoader):
    """Batches that own their memory.

    What a worker sends lies in shared memory, with an open file for each tensor. On the CPU timm hands labels on as they came:
    whoever keeps them would run out of files.
    """

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in super().__iter__():
            yield images, labels if labels.is_cuda else labels.clone()


class _CountedBatches(_Batches):
    """Batches of a stream, which are counted when it ends."""

    def __iter__(self) -> Iterator[Any]:
        found = 0
        for batch in super().__iter__():
            found += len(batch[0])
            yield batch
        self.loader.dataset.check_count(found)  # type: ignore[attr-defined]  # a StreamedImages


def _prefetch(
    loader: DataLoader,
    preparation: Prepares,
    device: torch.device,
    kind: type[_Batches] = _Batches,
    **erasing: Any,
) -> PrefetchLoader:
    channels = len(preparation.mean)
    found = kind(loader, preparation.mean, preparation.std, channels, device, torch.float32, **erasing)
    if device.type == "cuda":  # memory belongs to streams: what one loader leaves, the next could not use on its own
        found.stream = _stream(device)  # type: ignore[assignment]  # timm's to fill
    return found


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """On which batches are copied."""
    return torch.cuda.Stream(device)


def _collate(batch: list[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Collate with timm's function; label maps become int64, as class indices do."""
    images, labels = fast_collate(batch)
    return images, labels.long()


def _loader(images: Any, batch_size: int, workers: int, device: torch.device, sampler: Any, drop_last: bool) -> DataLoader:
    if isinstance(images, IterableDataset) and hasattr(images, "set_loader_cfg"):
        images.set_loader_cfg(num_workers=workers)
    # workers are started anew each epoch, so that their random numbers depend on the epoch's seed alone
    return DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        drop_last=drop_last,
    )
