"""Tell whether a split still has the same images."""

import hashlib
from typing import Any, TypedDict


class Fingerprint(TypedDict):
    """Equal for equal splits.

    Attributes:
        images: Number of images.
        classes: Class names in the order of their labels; None where the reader knows none.
        sha256: Hash of name, label and size of every image, in order. Pixels are hashed only where they are in memory.
    """

    images: int
    classes: list[str] | None
    sha256: str


def fingerprint(split: Any) -> Fingerprint:
    """Describe a split without decoding an image.

    Args:
        split: An opened split: `Images`, `StreamedImages`, or `imgproc_attn.segmentation.data.LabeledPictures`.

    Returns:
        A record that JSON can hold.
    """
    content = hashlib.sha256()
    for entry in getattr(split, "entries", tuple)():
        content.update(repr(entry).encode("ascii", "backslashreplace") + b"\n")
    classes = getattr(split, "classes", None)
    return {
        "images": len(split),
        "classes": sorted(classes, key=classes.__getitem__) if classes else None,
        "sha256": content.hexdigest(),
    }
