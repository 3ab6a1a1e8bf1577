"""Natural shifts of ImageNet: data sets of the same classes, taken otherwise; and one of classes a model does not know."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .classes import ClassMap, class_map


@dataclass(frozen=True)
class Shift:
    """A data set.

    Attributes:
        title: Its name.
        classes: Of its folders, and which logits count.
        source: The paper.
    """

    title: str
    classes: ClassMap
    source: str


def shifts() -> Mapping[str, Shift]:
    """By their name on the command line."""
    everything = class_map("imagenet-1k")
    return {
        "imagenet-a": Shift("ImageNet-A", class_map("imagenet-a"), "arXiv 1907.07174"),
        "imagenet-r": Shift("ImageNet-R", class_map("imagenet-r"), "arXiv 2006.16241"),
        "imagenet-sketch": Shift("ImageNet-Sketch", everything, "arXiv 1905.13549"),
        "imagenet-v2": Shift("ImageNet-V2", everything, "arXiv 1902.10811"),
        "imagenet-val": Shift("ImageNet, validation", everything, "arXiv 1409.0575"),
    }


def area_under_precision_recall(known: Tensor, unknown: Tensor) -> float:
    """AUPR in percent of telling images of unknown classes by low confidence (ImageNet-O, arXiv 1907.07174).

    Args:
        known: ``[n]`` largest probabilities for images of the model's classes.
        unknown: ``[m]`` likewise for images of others, which are what is to be found.
    """
    from sklearn.metrics import average_precision_score  # a second to import

    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))])
    return 100 * float(average_precision_score(truth.numpy(), -torch.cat([known, unknown]).numpy()))
