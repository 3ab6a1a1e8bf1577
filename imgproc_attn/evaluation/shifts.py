"""Natural distribution shifts of ImageNet: other data sets with the same classes."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SHIFTS", "Shift"]


@dataclass(frozen=True)
class Shift:
    """Data set of a natural shift.

    Attributes:
        title: Name in tables.
        classes: Name of the class map, which gives the labels of the folders and the logits that count. See
            `imgproc_attn.evaluation.imagenet_subsets.class_map`.
        source: Paper of the data set.
    """

    title: str
    classes: str
    source: str


# The keys are the names on the command line.
SHIFTS: Mapping[str, Shift] = {
    "imagenet-a": Shift("ImageNet-A", "imagenet-a", "arXiv 1907.07174"),
    "imagenet-r": Shift("ImageNet-R", "imagenet-r", "arXiv 2006.16241"),
    "imagenet-sketch": Shift("ImageNet-Sketch", "imagenet-1k", "arXiv 1905.13549"),
    "imagenet-v2": Shift("ImageNet-V2", "imagenet-1k", "arXiv 1902.10811"),
    "imagenet-val": Shift("ImageNet, validation", "imagenet-1k", "arXiv 1409.0575"),
}
