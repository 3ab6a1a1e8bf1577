"""The 15 corruptions of ImageNet-C and its 4 extra ones (arXiv 1903.12261), generated on the fly for pictures of any size.

Written to the definitions of the authors' generator, constants and slips included, on numpy, scipy and Pillow. The published
files were compressed as JPEG of quality 85 after that, which is not done here: call these numbers "generated", not ImageNet-C.
Lengths in pixels are those meant for 224 x 224, whatever the size.
"""

import zlib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...utils.checks import check_whole
from ..contract import check_images
from ..corruption_names import COMMON, CORRUPTIONS, EXTRA
from .noise import Generator, Picture
from .weather import check_frost


@dataclass(frozen=True)
class ImageNetC:
    """A corruption of a severity; calling it corrupts images.

    Args:
        name: One of `COMMON` or `EXTRA`.
        severity: 1 to 5.
        seed: Of all draws, which depend on it, the name, the severity and the sample's id.
        frost_folder: Of the photographs ``frost`` adds (see `imgproc_attn.evaluation.imagenet_c.weather.frost`).

    Raises:
        FileNotFoundError: A photograph of frost is not in the folder.
        ValueError: No such corruption or severity, or ``frost`` without a folder.
    """

    name: str
    severity: int
    seed: int = 0
    frost_folder: Path | None = None
    frost: str = field(init=False, default="")  # hash of the photographs, which records and resumed evaluations know them by

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise ValueError(f"There is no corruption {self.name!r}; there are {', '.join(CORRUPTIONS)}.")
        check_whole(f"{self.name}: seed", self.seed)
        if check_whole(f"{self.name}: severity", self.severity) not in range(1, 6):
            raise ValueError(f"{self.name}: severity is {self.severity}, but must be one of 1 to 5.")
        if self.name == "frost" and self.frost_folder is None:
            raise ValueError(
                "frost: its photographs do not come with this package. Fetch frost1.png to frost5.jpg from "
                "github.com/hendrycks/robustness, ImageNet-C/create_c, and give their folder."
            )
        if self.name == "frost" and self.frost_folder is not None:
            object.__setattr__(self, "frost", check_frost(self.frost_folder))

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """``images`` ``[B, C, H, W]`` in [0, 1], of 1 or 3 channels, corrupted; read and given back in 8 bits.

        Raises:
            TypeError: As `check_images`.
            ValueError: As `check_images`, or another number of channels.
        """
        images = check_images(images)
        ids = range(len(images)) if sample_ids is None else sample_ids.tolist()
        pixels = images.detach().cpu().double().mul(255).round().to(torch.uint8).numpy()
        corrupted = [torch.from_numpy(self.corrupt(image, int(i))) for image, i in zip(pixels, ids)]
        return torch.stack(corrupted).to(images) / 255 if corrupted else images.clone()

    def corrupt(self, pixels: np.ndarray, sample_id: int) -> np.ndarray:
        """One image ``[C, H, W]`` in 8 bits, corrupted: what `__call__` does, for the processes that read images.

        Raises:
            ValueError: Not 8 bits, or not 1 or 3 channels.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise ValueError(
                f"{self.name}: pixels must be uint8 [channels, height, width] of 1 or 3 channels, got {pixels.dtype} of shape "
                f"{list(pixels.shape)}. Corrupt other channels by a function of your own."
            )
        rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), self.severity, sample_id])
        picture = np.broadcast_to(pixels.transpose(1, 2, 0) / 255, (*pixels.shape[1:], 3)).copy()
        found = corrupt(self.name, picture, self.severity, rng, self.frost_folder)
        found = found if pixels.shape[0] == 3 else found.mean(axis=2, keepdims=True)
        return np.rint(found * 255).astype(np.uint8).transpose(2, 0, 1)


def corrupt(name: str, x: Picture, severity: int, rng: Generator, frost_folder: Path | None = None) -> Picture:
    """A picture ``[H, W, 3]`` in [0, 1], corrupted, cut to [0, 1] and, as the authors' files, down to 8 bits."""
    corruption = getattr(import_module(f".{CORRUPTIONS[name]}", __name__), name)
    options = {"folder": frost_folder} if name == "frost" else {}
    # the addition keeps what is a gray level already from falling to the one below by rounding
    return np.floor(np.clip(corruption(x, severity, rng, **options), 0, 1) * 255 + 1e-6) / 255


__all__ = ["COMMON", "EXTRA", "ImageNetC", "corrupt"]
