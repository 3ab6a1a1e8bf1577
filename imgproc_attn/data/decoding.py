"""Decode images to 8 bits per value: the one rule of all readers, for classification and segmentation."""

import re
from typing import Any

from PIL import Image

# Pillow reads these in practice. Of several frames (GIF, TIFF) the first is read.
IMAGE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
# raised by Pillow
CANNOT_READ = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)


def check_bit_depth(image: Any) -> None:
    """Refuse images whose values would be cut off at 255 or at their upper 8 bits.

    Args:
        image: A PIL image; only its header is looked at.

    Raises:
        ValueError: It has more than 8 bits per value.
    """
    # Pillow opens 16-bit colors in an 8-bit mode; the raw mode in the tiles shows it. "BGR;16" is 5 or 6 bits per color.
    if image.mode.startswith(("I", "F")) or re.search(r"(?<!BGR);16", str(getattr(image, "tile", ""))):
        raise ValueError(f"it has more than 8 bits a value (mode {image.mode}); scale it to 0 to 255 and store 8 bits")


def to_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """Decode a PIL image.

    Args:
        image: Opened or in memory.
        mode: ``L`` for gray, ``RGB`` for color.

    Raises:
        ValueError: It has more than 8 bits per value.
    """
    check_bit_depth(image)
    return image.convert(mode)
