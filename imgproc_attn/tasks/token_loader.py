"""Loader of shuffled batches of token sequences."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .base import Loading

__all__ = ["token_loader"]


def token_loader(dataset: Dataset, loading: Loading, noun: str, collate: Callable[..., Any] | None = None) -> "_OnDevice":
    """Return a loader of shuffled batches of tokens and targets on the device.

    Args:
        dataset: Pairs of tokens and a target. Its length is known.
        loading: Batch size, processes and device.
        noun: Name of the samples, for the message.
        collate: Function from a list of samples to a batch. Default: torch's.

    Raises:
        ValueError: A batch over all processes is larger than the data set.
    """
    count: int = len(dataset)  # type: ignore[arg-type]
    total = loading.batch_size * loading.world.size
    if count < total:
        raise ValueError(
            f"run.batch_size must be at most the number of {noun}, {count}, got {total} over all processes. Lower it."
        )
    sampler: Any = DistributedSampler(dataset, loading.world.size, loading.world.rank, drop_last=True)
    loader: Any = DataLoader(
        dataset,
        loading.batch_size,
        sampler=sampler,
        num_workers=loading.workers,
        pin_memory=loading.device.type == "cuda",
        drop_last=True,
        collate_fn=collate,
    )
    return _OnDevice(loader, loading.device)


class _OnDevice:
    """Loader whose batches are on a device.

    Args:
        loader: torch's loader.
        device: The device.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, targets in self.loader:
            yield tokens.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
