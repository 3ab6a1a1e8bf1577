"""Loaders of training and evaluation: timm's transforms, collation and prefetching around torch's `DataLoader`.

timm's own ``create_loader`` takes no sampler. Here the order is a function of seed and epoch alone, the same for any number of
processes, and evaluation covers each image once without padding: what exact resuming and exact counts need.
"""

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from .images import Images


class Processes(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1


def training_loader(
    images: Images | IterableDataset,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes = Processes(),
    repeats: int = 1,
    erasing: float = 0.0,
) -> PrefetchLoader:
    """Shuffled whole batches on the device, normalised.

    Before each epoch call ``loader.sampler.set_epoch``; of the images of update ``i``, this process takes every
    ``processes.count``-th.

    Args:
        images: With their transform set.
        mean: Subtracted from images in [0, 1].
        std: What they are divided by.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        processes: Which this is.
        repeats: Each image so many times.
        erasing: Probability of random erasing.

    Raises:
        ValueError: Fewer images than one batch of all processes.
    """
    sampler = None
    if not isinstance(images, IterableDataset):
        total = batch_size * processes.count
        if len(images) < total:
            raise ValueError(
                f"run.batch_size needs {total} images at a time, but there are {len(images)} for training; lower it."
            )
        if repeats > 1:
            sampler = RepeatAugSampler(images, processes.count, processes.rank, num_repeats=repeats)
        else:
            sampler = DistributedSampler(images, processes.count, processes.rank, drop_last=True)
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=True)
    return PrefetchLoader(
        loader, tuple(mean), tuple(std), len(mean), device, torch.float32, re_prob=erasing, re_mode="pixel", re_count=1
    )


def evaluation_loader(
    images: Images | IterableDataset,
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes = Processes(),
) -> PrefetchLoader:
    """All images in order, resized and centre-cropped, normalised; each in exactly one process.

    Args:
        images: Get timm's transform for evaluation.
        input_size: ``[channels, height, width]``.
        mean: Subtracted from images in [0, 1]; zeros, with ``std`` of ones, for images in [0, 1].
        std: What they are divided by.
        interpolation: Of resizing.
        crop_pct: The short side is resized to ``input_size / crop_pct``.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        processes: Which this is.

    Raises:
        ValueError: A set that can only be iterated over, in several processes.
    """
    images.transform = create_transform(  # type: ignore[union-attr]
        tuple(input_size), interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
    )
    sampler = None
    if not isinstance(images, IterableDataset):
        sampler = range(processes.rank, len(images), processes.count)
    elif processes.count > 1:
        raise ValueError(
            "A set that can only be iterated over cannot be shared out exactly; evaluate it in one process, without torchrun."
        )
    loader = _loader(images, batch_size, workers, device, sampler, drop_last=False)
    return PrefetchLoader(loader, tuple(mean), tuple(std), len(mean), device, torch.float32)


def _loader(images, batch_size: int, workers: int, device: torch.device, sampler, drop_last: bool) -> DataLoader:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        warnings.warn(
            f"data.workers is {workers}, but this machine has {cores} cores; more processes slow each other.", stacklevel=3
        )
    if isinstance(images, IterableDataset) and hasattr(images, "set_loader_cfg"):
        images.set_loader_cfg(num_workers=workers)
    # workers are started anew each epoch, so that their random numbers depend on the epoch's seed alone
    return DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=fast_collate,
        pin_memory=device.type == "cuda",
        drop_last=drop_last,
    )
