"""Decoding of images to 8 bits per value. All readers use it, for classification and for segmentation.

Pillow raises one of `CANNOT_READ` for a file that cannot be read. `imgproc_attn.data.images.Images` then stops, or replaces or
ignores the image. Images with label maps (`imgproc_attn.segmentation.data`) always stop. Streams leave out such images.
"""

import re
from typing import Any

from PIL import Image

__all__ = ["CANNOT_READ", "IMAGE_EXTENSIONS", "check_bit_depth", "to_8_bits"]

# Pillow reads these formats. Of a file with several frames (GIF, TIFF), the first frame is read.
IMAGE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
# Pillow raises these errors for files that it cannot decode.
CANNOT_READ = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)


def check_bit_depth(image: Any) -> None:
    """Refuse an image with more than 8 bits per value, which a conversion would clip or truncate.

    Args:
        image: PIL image. Only its header is read.

    Raises:
        ValueError: The image has more than 8 bits per value.
    """
    # Pillow opens 16-bit colors in an 8-bit mode. Only the raw mode of the tiles shows it. "BGR;16" has 5 or 6 bits per color.
    if image.mode.startswith(("I", "F")) or re.search(r"(?<!BGR);16", str(getattr(image, "tile", ""))):
        raise ValueError(f"it has more than 8 bits per value (mode {image.mode}); scale it to 0 to 255 and store 8 bits")


def to_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """Decode a PIL image to 8 bits per value.

    Args:
        image: PIL image, opened lazily or in memory.
        mode: ``L`` for gray, ``RGB`` for color.

    Raises:
        ValueError: The image has more than 8 bits per value.
    """
    check_bit_depth(image)
    return image.convert(mode)
