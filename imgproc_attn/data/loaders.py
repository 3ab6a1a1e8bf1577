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


class World(NamedTuple):
    """The processes that work together.

    Attributes:
        rank: Rank of this process, from 0.
        size: Number of processes.
    """

    rank: int
    size: int


SINGLE_PROCESS = World(0, 1)


class Preprocessing(NamedTuple):
    """How a model wants its images; the names are timm's.

    Attributes:
        input_size: ``(channels, height, width)``.
        mean: Subtracted from images in [0, 1].
        std: What they are divided by.
        interpolation: Of resizing.
        crop_pct: For evaluation the short side is resized to ``input_size / crop_pct``, and the center cropped.
        crop_mode: ``center``; or ``squash``, both sides resized; or ``border``, the long side resized, the rest filled.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """From timm's data configuration, or a model's ``pretrained_cfg``."""
        size, mean, std = (tuple(config[name]) for name in ("input_size", "mean", "std"))
        return cls(size, mean, std, config["interpolation"], config["crop_pct"], config.get("crop_mode", "center"))

    @classmethod
    def for_channels(cls, config: Mapping[str, Any], channels: int) -> dict[str, Any]:
        """The configuration with statistics for that many channels: their average, as timm does it, if they are for others."""
        known = {key: config[key] for key in ("mean", "std") if key in config and len(config[key]) != channels}
        return {**config, **{key: (statistics.fmean(values),) * channels for key, values in known.items()}}

    def without_normalization(self) -> "Preprocessing":
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


class PreprocessingLike(Protocol):
    """`Preprocessing`, or another way to prepare images for evaluation."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from images in [0, 1]; one value a channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """What they are divided by."""
        ...

    def transform(self) -> Callable[..., Any]:
        """Return the transform from what a data set holds to 8-bit pixels."""
        ...

    def without_normalization(self) -> "PreprocessingLike":
        """Return the preprocessing that leaves images in [0, 1]."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


def training_loader(
    images: Images | IterableDataset,
    preprocessing: PreprocessingLike,
    batch_size: int,
    workers: int,
    device: torch.device,
    world: World = SINGLE_PROCESS,
    aug_repeats: int = 1,
    random_erasing: float = 0.0,
) -> PrefetchLoader:
    """Shuffled whole batches on the device, normalized.

    Before each epoch call ``loader.sampler.set_epoch``; of the images of update ``i``, this process takes every
    ``world.size``-th.

    Args:
        images: With their transform set.
        preprocessing: Of which the normalization is used.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        world: Rank of this process and number of processes.
        aug_repeats: Each image so many times.
        random_erasing: Probability of random erasing.

    Raises:
        ValueError: Fewer images than one batch of all processes.
    """
    sampler: Any = None
    if not isinstance(images, IterableDataset):
        total = batch_size * world.size
        if len(images) < total:
            raise ValueError(
                f"run.batch_size needs {total} images at a time, but there are {len(images)} for training; lower it."
            )
        if aug_repeats > 1:
            sampler = RepeatAugSampler(images, world.size, world.rank, num_repeats=aug_repeats, selected_round=0)
        else:
            sampler = DistributedSampler(images, world.size, world.rank, drop_last=True)
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=True)
    return _prefetch(loader, preprocessing, device, re_prob=random_erasing, re_mode="pixel")


def evaluation_loader(
    images: Any,
    preprocessing: PreprocessingLike,
    batch_size: int,
    workers: int,
    device: torch.device,
    world: World = SINGLE_PROCESS,
) -> PrefetchLoader:
    """All images in order, prepared and normalized; each in exactly one process.

    Args:
        images: Whose ``transform`` becomes the preprocessing's: `Images`, or what has one likewise.
        preprocessing: Size, resizing and normalization.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        world: Rank of this process and number of processes.

    Raises:
        ValueError: A set that can only be iterated over, in several processes; or fewer images than processes.
    """
    images.transform = preprocessing.transform()
    sampler = None
    if not isinstance(images, IterableDataset):
        sampler = range(world.rank, len(images), world.size)
        if len(images) < world.size:
            raise ValueError(f"There are {len(images)} images for {world.size} processes; evaluate in fewer.")
    elif world.size > 1:
        raise ValueError(
            "A set that can only be iterated over cannot be shared out exactly; evaluate it in one process, without torchrun."
        )
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=False)
    return _prefetch(loader, preprocessing, device, _CountedBatches if isinstance(images, StreamedImages) else _Batches)


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
    preprocessing: PreprocessingLike,
    device: torch.device,
    kind: type[_Batches] = _Batches,
    **random_erasing: Any,
) -> PrefetchLoader:
    channels = len(preprocessing.mean)
    found = kind(loader, preprocessing.mean, preprocessing.std, channels, device, torch.float32, **random_erasing)
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
