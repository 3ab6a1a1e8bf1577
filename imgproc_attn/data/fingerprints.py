"""Fingerprint of a split, to detect that its images or labels have changed."""

import hashlib
from typing import Any, TypedDict

__all__ = ["Fingerprint", "fingerprint"]


class Fingerprint(TypedDict):
    """Summary of a split. Equal splits have equal fingerprints.

    Attributes:
        images: Number of images.
        classes: Class names in the order of their labels; None if the reader has no class names.
        sha256: Hash of the name, label and size of every image, in order. Pixels are hashed only if they are in memory.
    """

    images: int
    classes: list[str] | None
    sha256: str


def fingerprint(split: Any) -> Fingerprint:
    """Compute the fingerprint of a split without decoding an image.

    Args:
        split: Opened split: `Images`, `StreamedImages`, or `imgproc_attn.segmentation.data.LabeledImages`.

    Returns:
        JSON-serializable record.

    Example:
        >>> from imgproc_attn.data import Images, open_images
        >>> fingerprint(Images(open_images("digits", "", "test"), num_classes=10))["images"]
        360
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
