"""Natural shifts of ImageNet: data sets of the same classes, taken otherwise; and one of classes a model does not know."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shift:
    """A data set.

    Attributes:
        title: Its name.
        classes: Of its folders, and which logits count: a name that `imgproc_attn.evaluation.imagenet_subsets.class_map` knows.
        source: The paper.
    """

    title: str
    classes: str
    source: str


# by name on the command line
SHIFTS: Mapping[str, Shift] = {
    "imagenet-a": Shift("ImageNet-A", "imagenet-a", "arXiv 1907.07174"),
    "imagenet-r": Shift("ImageNet-R", "imagenet-r", "arXiv 2006.16241"),
    "imagenet-sketch": Shift("ImageNet-Sketch", "imagenet-1k", "arXiv 1905.13549"),
    "imagenet-v2": Shift("ImageNet-V2", "imagenet-1k", "arXiv 1902.10811"),
    "imagenet-val": Shift("ImageNet, validation", "imagenet-1k", "arXiv 1409.0575"),
}
