"""Data loaders for training and evaluation: timm's transforms, collation and prefetching around torch's `DataLoader`.

timm's ``create_loader`` takes no sampler. These loaders need their own samplers for two guarantees:

- Training: the order depends only on seed and epoch, for any number of processes. Exact resuming needs this.
- Evaluation: each image is read once, without padding. Exact counts need this.
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

__all__ = ["SINGLE_PROCESS", "Preprocessing", "PreprocessingLike", "World", "evaluation_loader", "training_loader"]


class World(NamedTuple):
    """Processes of a distributed job.

    Attributes:
        rank: Rank of this process, counted from 0.
        size: Number of processes.
    """

    rank: int
    size: int


SINGLE_PROCESS = World(0, 1)


class Preprocessing(NamedTuple):
    """Preprocessing that a model expects, with timm's names.

    Attributes:
        input_size: ``(channels, height, width)``.
        mean: Mean per channel, subtracted from images in [0, 1].
        std: Standard deviation per channel. Images are divided by it after the mean is subtracted.
        interpolation: Interpolation of resizing, such as ``bicubic``.
        crop_pct: Evaluation resizes the short side to ``input_size / crop_pct`` and crops the center.
        crop_mode: ``center``: resize the short side, crop the center. ``squash``: resize both sides. ``border``: resize the
            long side, fill the border.

    Example:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224")
        >>> Preprocessing.of(model.pretrained_cfg).input_size
        (3, 224, 224)
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing of timm's data configuration or of a model's ``pretrained_cfg``."""
        size, mean, std = (tuple(config[name]) for name in ("input_size", "mean", "std"))
        return cls(size, mean, std, config["interpolation"], config["crop_pct"], config.get("crop_mode", "center"))

    @classmethod
    def for_channels(cls, config: Mapping[str, Any], channels: int) -> dict[str, Any]:
        """Return a configuration whose mean and std have ``channels`` values: as given, or their average, as in timm."""
        known = {key: config[key] for key in ("mean", "std") if key in config and len(config[key]) != channels}
        return {**config, **{key: (statistics.fmean(values),) * channels for key, values in known.items()}}

    def without_normalization(self) -> "Preprocessing":
        """Return the preprocessing without normalization, which keeps images in [0, 1]."""
        channels = self.input_size[0]
        return self._replace(mean=(0.0,) * channels, std=(1.0,) * channels)

    def transform(self) -> Callable[[Any], Any]:
        """Return timm's evaluation transform, which resizes and crops a PIL image and keeps 8 bits per value."""
        return create_transform(
            self.input_size,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,
        )


class PreprocessingLike(Protocol):
    """Interface of an evaluation preprocessing: `Preprocessing`, or its counterpart for images with label maps."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, subtracted from images in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel. Images are divided by it after the mean is subtracted."""
        ...

    def transform(self) -> Callable[..., Any]:
        """Return the transform from an item of the data set to arrays of 8 bits per value."""
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
    """Return a loader of shuffled, complete, normalized batches on the device.

    Call ``loader.sampler.set_epoch`` before each epoch. This process takes every ``world.size``-th image of an update.

    Args:
        images: Data set whose transform is set.
        preprocessing: Preprocessing. Only its mean and std are used.
        batch_size: Images per batch of this process.
        workers: Number of reader processes.
        device: Device of the batches.
        world: Rank of this process and number of processes.
        aug_repeats: Number of augmented copies per image (repeated augmentation).
        random_erasing: Probability of random erasing.

    Raises:
        ValueError: There are fewer images than one batch over all processes needs.
    """
    sampler: Any = None
    if not isinstance(images, IterableDataset):
        total = batch_size * world.size
        if len(images) < total:
            raise ValueError(
                f"run.batch_size must be at most the number of training images, {len(images)}, got {total} over all processes. "
                "Lower it."
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
    """Return a loader of all images in order, preprocessed and normalized. Each image is read by exactly one process.

    Args:
        images: `Images`, or another data set with an attribute ``transform``. The attribute is set to the transform of
            ``preprocessing``.
        preprocessing: Size, resizing and normalization.
        batch_size: Images per batch of this process.
        workers: Number of reader processes.
        device: Device of the batches.
        world: Rank of this process and number of processes.

    Raises:
        ValueError: An iterable data set is given to several processes, or there are fewer images than processes.

    Example:
        >>> from imgproc_attn.data import Images, open_images
        >>> images = Images(open_images("digits", "", "test"), num_classes=10, channels=1)
        >>> prepared = Preprocessing((1, 8, 8), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)
        >>> loader = evaluation_loader(images, prepared, batch_size=32, workers=0, device=torch.device("cpu"))
        >>> batch, labels = next(iter(loader))
        >>> batch.shape
        torch.Size([32, 1, 8, 8])
    """
    images.transform = preprocessing.transform()
    sampler = None
    if not isinstance(images, IterableDataset):
        sampler = range(world.rank, len(images), world.size)
        if len(images) < world.size:
            raise ValueError(
                f"The number of processes must be at most the number of images, {len(images)}, got {world.size}. Use fewer."
            )
    elif world.size > 1:
        raise ValueError(
            f"The number of processes must be 1 for an iterable data set, which cannot be split exactly, got {world.size}. "
            "Evaluate it in one process, without torchrun."
        )
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=False)
    return _prefetch(loader, preprocessing, device, _CountedBatches if isinstance(images, StreamedImages) else _Batches)


class _Batches(PrefetchLoader):
    """Batches that own their memory.

    A worker sends tensors through shared memory, with one open file per tensor. On the CPU, timm returns the labels without
    a copy. A caller that keeps them would run out of open files.
    """

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in super().__iter__():
            yield images, labels if labels.is_cuda else labels.clone()


class _CountedBatches(_Batches):
    """Batches of a stream. At its end, the number of images is compared with the announced number."""

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in super().__iter__():
            count += len(batch[0])
            yield batch
        self.loader.dataset.check_count(count)  # type: ignore[attr-defined]  # The data set is a StreamedImages.


def _prefetch(
    loader: DataLoader,
    preprocessing: PreprocessingLike,
    device: torch.device,
    kind: type[_Batches] = _Batches,
    **random_erasing: Any,
) -> PrefetchLoader:
    channels = len(preprocessing.mean)
    batches = kind(loader, preprocessing.mean, preprocessing.std, channels, device, torch.float32, **random_erasing)
    if device.type == "cuda":  # Freed memory belongs to its stream. With streams of their own, loaders could not reuse it.
        batches.stream = _stream(device)  # type: ignore[assignment]  # timm declares no type for it.
    return batches


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that batches are copied on."""
    return torch.cuda.Stream(device)


def _collate(batch: list[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Collate with timm's function, and convert label maps to int64 as it does class indices."""
    images, labels = fast_collate(batch)
    return images, labels.long()


def _loader(images: Any, batch_size: int, workers: int, device: torch.device, sampler: Any, drop_last: bool) -> DataLoader:
    if isinstance(images, IterableDataset) and hasattr(images, "set_loader_cfg"):
        images.set_loader_cfg(num_workers=workers)
    # Workers are restarted in each epoch, so that their random numbers depend only on the seed of the epoch.
    return DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        drop_last=drop_last,
    )
