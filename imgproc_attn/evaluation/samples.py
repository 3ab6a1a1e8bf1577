"""Images that keep their numbers and names through loaders, batches and processes, so that every draw and flag is theirs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import IGNORED, Images, Preparation, evaluation_loader


class PixelCorruption(Protocol):
    """What corrupts 8-bit pixels, as `imgproc_attn.evaluation.imagenet_c.ImageNetC`."""

    def corrupt(self, pixels: np.ndarray, sample_id: int) -> np.ndarray:
        """``[C, H, W]``, for the sample of that number."""
        ...


class Samples(Dataset):
    """Images of a data set, of the size a model wants, in 8 bits.

    Args:
        images: Of a reader that knows them by number.
        corruption: Of what the model would get; done by the processes that read.
        positions: Which of the images. Default: all.

    Attributes:
        ids: ``[n]`` numbers in the reader: the same for a subset as for the whole.
    """

    def __init__(
        self, images: Images, corruption: PixelCorruption | None = None, positions: Sequence[int] | None = None
    ) -> None:
        self.images, self.corruption = images, corruption
        self._positions = range(len(images)) if positions is None else positions
        self.ids = torch.tensor([images.indices[i] for i in self._positions], dtype=torch.int64)

    def without(self, ids: Tensor) -> "Samples":
        """Those of other numbers."""
        left = (~torch.isin(self.ids, ids)).nonzero()[:, 0].tolist()
        return Samples(self.images, self.corruption, [self._positions[i] for i in left])

    def share(self, rank: int, world: int) -> "Samples":
        """Every ``world``-th, from ``rank`` on."""
        return Samples(self.images, self.corruption, self._positions[rank::world])

    @property
    def names(self) -> list[str]:
        """What the images are called, in the order of `ids`."""
        return [self.images.name(i) for i in self._positions]

    @property
    def class_names(self) -> dict[int, str]:
        """``{label: name}``, where names are known."""
        return {label: name for name, label in (self.images.classes or {}).items()}

    @property
    def transform(self) -> Callable[..., Any] | None:
        """Of the images; loaders set it."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Callable[..., Any]) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, label = self.images[self._positions[index]]
        sample_id = self.images.indices[self._positions[index]]
        if self.corruption is not None and label != IGNORED:
            pixels = self.corruption.corrupt(np.asarray(pixels), sample_id)
        return np.asarray(pixels), np.array([label, sample_id])

    def batches(
        self, preparation: Preparation, batch_size: int, workers: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images in [0, 1], labels and ids, on the device; unreadable images have the label -1."""
        if len(self) == 0:
            return
        loader = evaluation_loader(self, preparation.without_normalisation(), batch_size, min(workers, len(self)), device)
        for images, targets in loader:
            yield images, targets[:, 0], targets[:, 1]
