"""The 15 corruptions of ImageNet-C and its 4 extra ones (arXiv 1903.12261), generated on the fly for images of any size.

The code follows the authors' generator, with its constants and its errors, on numpy, scipy and Pillow. The published files were
then compressed as JPEG of quality 85, which is not done here. Report these numbers as "generated", not as ImageNet-C. Lengths
in pixels are the published ones for 224 x 224, whatever the size.
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
from .noise import Generator, ImageArray
from .weather import check_frost

__all__ = ["COMMON", "EXTRA", "ImageNetC", "corrupt"]


@dataclass(frozen=True)
class ImageNetC:
    """Corruption of ImageNet-C with a severity. Call it to corrupt images.

    Args:
        name: One of `COMMON` or `EXTRA`.
        severity: 1 to 5.
        seed: Seed of all random numbers. They depend only on it, the name, the severity and the sample's id.
        frost_folder: Folder of the photographs that ``frost`` adds (see `imgproc_attn.evaluation.imagenet_c.weather.frost`).

    Raises:
        FileNotFoundError: A photograph of frost is not in the folder.
        ValueError: The name or the severity is unknown, or ``frost`` has no folder.

    Example:
        >>> ImageNetC("gaussian_noise", severity=3)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    name: str
    severity: int
    seed: int = 0
    frost_folder: Path | None = None
    frost: str = field(init=False, default="")  # Hash of the photographs, by which records identify them.

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise ValueError(f"The corruption must be one of {', '.join(CORRUPTIONS)}, got {self.name!r}. Check the spelling.")
        check_whole(f"{self.name}: seed", self.seed)
        if check_whole(f"{self.name}: severity", self.severity) not in range(1, 6):
            raise ValueError(f"{self.name}: severity must be from 1 to 5, got {self.severity}. 5 is the strongest.")
        if self.name == "frost" and self.frost_folder is None:
            raise ValueError(
                "frost: frost_folder must be the folder of the photographs, got None. Download frost1.png to frost5.jpg from "
                "github.com/hendrycks/robustness, ImageNet-C/create_c. They do not come with this package."
            )
        if self.name == "frost" and self.frost_folder is not None:
            object.__setattr__(self, "frost", check_frost(self.frost_folder))

    def __call__(self, images: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """Return the corrupted images. They are rounded to 8 bits before and after.

        Args:
            images: ``[B, C, H, W]`` in [0, 1], with 1 or 3 channels.
            sample_ids: ``[B]`` numbers of the images in their data set. Default: 0 to B - 1.

        Raises:
            TypeError: As `check_images`.
            ValueError: As `check_images`, or the images do not have 1 or 3 channels.
        """
        images = check_images(images)
        ids = range(len(images)) if sample_ids is None else sample_ids.tolist()
        pixels = images.detach().cpu().double().mul(255).round().to(torch.uint8).numpy()
        corrupted = [torch.from_numpy(self.corrupt(image, int(i))) for image, i in zip(pixels, ids)]
        return torch.stack(corrupted).to(images) / 255 if corrupted else images.clone()

    def corrupt(self, pixels: np.ndarray, sample_id: int) -> np.ndarray:
        """Return one corrupted image ``[C, H, W]`` in 8 bits. Worker processes that read images call it.

        Args:
            pixels: ``[C, H, W]`` uint8, with 1 or 3 channels.
            sample_id: Number of the image in its data set.

        Raises:
            ValueError: The pixels are not uint8, or do not have 1 or 3 channels.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise ValueError(
                f"{self.name}: pixels must be uint8 [channels, height, width] of 1 or 3 channels, got {pixels.dtype} of shape "
                f"{list(pixels.shape)}. Corrupt other images by your own function."
            )
        rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), self.severity, sample_id])
        image = np.broadcast_to(pixels.transpose(1, 2, 0) / 255, (*pixels.shape[1:], 3)).copy()
        result = corrupt(self.name, image, self.severity, rng, self.frost_folder)
        result = result if pixels.shape[0] == 3 else result.mean(axis=2, keepdims=True)
        return np.rint(result * 255).astype(np.uint8).transpose(2, 0, 1)


def corrupt(name: str, x: ImageArray, severity: int, rng: Generator, frost_folder: Path | None = None) -> ImageArray:
    """Return the corrupted image, clipped to [0, 1] and rounded down to 8 bits, as in the authors' code.

    Args:
        name: Name of the corruption.
        x: ``[H, W, 3]`` image in [0, 1].
        severity: 1 to 5.
        rng: Source of all random numbers.
        frost_folder: Folder of the photographs that ``frost`` adds.
    """
    corruption = getattr(import_module(f".{CORRUPTIONS[name]}", __name__), name)
    options = {"folder": frost_folder} if name == "frost" else {}
    # The small addition keeps rounding errors from turning a gray level into the one below.
    return np.floor(np.clip(corruption(x, severity, rng, **options), 0, 1) * 255 + 1e-6) / 255
