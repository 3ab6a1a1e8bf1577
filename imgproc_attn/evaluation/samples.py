"""Images that keep their numbers and names through loaders, batches and processes, so that every draw and flag is theirs."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import Prepares, evaluation_loader
from ..utils.io import printable
from .accuracy import names_hash
from .contract import check_pixels

LOOKED_AT = 8  # images whose content tells data sets of equal names apart


class PixelCorruption(Protocol):
    """What corrupts 8-bit pixels, as `imgproc_attn.evaluation.imagenet_c.ImageNetC`."""

    def corrupt(self, pixels: np.ndarray, sample_id: int) -> np.ndarray:
        """``[C, H, W]``, for the sample of that number."""
        ...


class Numbered(Protocol):
    """A data set whose images have numbers and names: `Images`, or pictures with label maps."""

    transform: Any

    @property
    def indices(self) -> Sequence[int]:
        """Numbers of the images, in the reader."""
        ...

    @property
    def classes(self) -> Mapping[str, int] | None:
        """``{name: label}``, where names are known."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def name(self, index: int) -> str:
        """What the image is called."""
        ...

    def content(self, index: int) -> bytes:
        """Equal for equal images with equal labels."""
        ...


class Prepared(Prepares, Protocol):
    """A preprocessing that can do without normalization, and be recorded."""

    def without_normalization(self) -> Prepares:
        """The same images, in [0, 1]."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


class Samples(Dataset):
    """Images of a data set, of the size a model wants, in 8 bits.

    Args:
        images: Which it knows by number.
        corruption: Of what the model would get; done by the processes that read.
        positions: Which of the images. Default: all.

    Attributes:
        ids: ``[n]`` numbers in the reader: the same for a subset as for the whole.
    """

    def __init__(
        self, images: Numbered, corruption: PixelCorruption | None = None, positions: Sequence[int] | None = None
    ) -> None:
        self.images, self.corruption = images, corruption
        self._positions = range(len(images)) if positions is None else positions
        self.ids = torch.tensor([images.indices[i] for i in self._positions], dtype=torch.int64)

    def only(self, ids: Tensor) -> "Samples":
        """Those of these numbers."""
        return self._some(torch.isin(self.ids, ids))

    def without(self, ids: Tensor) -> "Samples":
        """Those of other numbers."""
        return self._some(~torch.isin(self.ids, ids))

    def _some(self, flags: Tensor) -> "Samples":
        return Samples(self.images, self.corruption, [self._positions[i] for i in flags.nonzero()[:, 0].tolist()])

    def corrupted(self, corruption: PixelCorruption) -> "Samples":
        """The same, corrupted otherwise."""
        found = Samples(self.images, corruption, self._positions)
        found.__dict__ |= {"names": self.names, "identity": self.identity}  # read once for all corruptions
        return found

    def share(self, rank: int, world: int) -> "Samples":
        """Every ``world``-th, from ``rank`` on."""
        return Samples(self.images, self.corruption, self._positions[rank::world])

    @cached_property
    def names(self) -> list[str]:
        """What the images are called, in the order of `ids`; a name that several have is told apart by their numbers."""
        found = [self.images.name(i) for i in self._positions]
        count = Counter(found)
        return [name if count[name] == 1 else f"{name}#{i}" for name, i in zip(found, self.ids.tolist())]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which images these are: their number, a hash of their names, and one of the content of a few of them."""
        content = hashlib.sha256()
        for i in sorted({len(self) * part // LOOKED_AT for part in range(LOOKED_AT)}) if len(self) else []:
            content.update(self.images.content(self._positions[i]))
        return {"n": len(self), "names_sha256": names_hash(self.names), "content_sha256": content.hexdigest()}

    @property
    def class_names(self) -> dict[int, str]:
        """``{label: name}``, where names are known."""
        return {label: printable(name) for name, label in (self.images.classes or {}).items()}

    @property
    def transform(self) -> Callable[..., Any] | None:
        """Of the images; loaders set it."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Callable[..., Any]) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        pixels, label = self.images[self._positions[index]]
        pixels = np.asarray(pixels)
        if self.corruption is None:
            return pixels, label
        found = self.corruption.corrupt(pixels, int(self.ids[index]))
        return check_pixels(getattr(self.corruption, "name", type(self.corruption).__name__), found, pixels), label

    def batches(
        self, preprocessing: Prepared, batch_size: int, workers: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images in [0, 1], labels and ids, on the device; unreadable images have the label -1."""
        if len(self) == 0:
            return
        loader = evaluation_loader(self, preprocessing.without_normalization(), batch_size, min(workers, len(self)), device)
        try:
            for (images, labels), ids in zip(loader, self.ids.split(batch_size)):
                yield images, labels, ids.to(device)
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise ValueError("Pictures of different sizes make no batch; give --batch-size 1.") from error
