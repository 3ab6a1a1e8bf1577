"""Segmentation metrics by accumulated areas, as mmsegmentation's ``IoUMetric`` defines them."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

IGNORE_INDEX = 255  # label of pixels that count nowhere
NUM_DRAWS = 1000  # of a bootstrap


def check_classes(what: str, values: Tensor, num_classes: int) -> None:
    """Refuse ``values`` that are no classes.

    Raises:
        ValueError: They are not all from 0 to ``num_classes - 1``.
    """
    if len(values) and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(
            f"{what} range from {values.min()} to {values.max()}, but with {num_classes} classes they run from 0 "
            f"to {num_classes - 1}; labels of {IGNORE_INDEX} are ignored."
        )


@torch.no_grad()
def count_pixels(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """``[3, classes]``: pixels of each class that are right, that are predicted, that are labeled; ignored ones count nowhere.

    Args:
        predicted: Classes, of any shape.
        label: Of the same shape.
        num_classes: Labels run from 0 to ``num_classes - 1``.

    Raises:
        ValueError: Shapes that differ, or labels that are no class and not ignored.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"Predictions {list(predicted.shape)} and labels {list(label.shape)} differ in shape.")
    kept = label != IGNORE_INDEX
    label, predicted = label[kept].long(), predicted[kept].long()
    check_classes("Labels", label, num_classes)
    check_classes("Predictions", predicted, num_classes)
    return torch.stack(
        [torch.bincount(values, minlength=num_classes) for values in (label[label == predicted], predicted, label)]
    )


def metrics_of(areas: Tensor) -> dict[str, Any]:
    """``pixel_accuracy``, ``mean_accuracy``, ``miou`` in percent, ``pixels``; ``iou`` and ``accuracy`` by class, None for what
    is not there.

    Args:
        areas: ``[3, classes]``, sums of `count_pixels`.

    Raises:
        ValueError: No pixel was counted.
    """
    n = int(areas[2].sum())
    if n == 0:
        raise ValueError("No pixel to evaluate on: the split is empty, or all its labels are to be ignored.")
    found = _percent(areas)
    return {
        "pixels": n,
        **{name: value.item() for name, value in found.means.items()},
        "iou": _known(found.iou),
        "accuracy_by_class": _known(found.accuracy),
    }


def bootstrap(areas: Tensor) -> dict[str, Tensor]:
    """``[1000]`` values of ``pixel_accuracy``, ``mean_accuracy`` and ``miou``, when pictures are drawn again with replacement.

    The draws depend on the number of pictures alone, so differences of two models on the same pictures are paired.

    Args:
        areas: ``[pictures, 3, classes]``, of `count_pixels`.
    """
    n = len(areas)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=NUM_DRAWS)
    sums = torch.from_numpy(times).double() @ areas.double().flatten(1)
    return _percent(sums.view(NUM_DRAWS, *areas.shape[1:])).means


class _Percent(NamedTuple):
    """By class, ``[..., classes]``, and the means of them."""

    iou: Tensor
    accuracy: Tensor
    means: dict[str, Tensor]


def _percent(areas: Tensor) -> _Percent:
    right, predicted, labels = areas.double().unbind(dim=-2)
    iou, accuracy = 100 * right / (labels + predicted - right), 100 * right / labels
    of_all = 100 * right.sum(-1) / labels.sum(-1)
    return _Percent(iou, accuracy, {"pixel_accuracy": of_all, "mean_accuracy": accuracy.nanmean(-1), "miou": iou.nanmean(-1)})


class IoUMetric:
    """Areas of classes over many images, in the protocol of timm's evaluators: ``update``, then ``compute``.

    Intersections, predicted and true areas are summed over all images first and divided then; a class that is neither
    predicted nor there has no value (None), and is left out of means. Pixels with the label 255 count nowhere. Sums are
    integers: exact in any order, and over processes.

    Args:
        num_classes: Labels run from 0 to ``num_classes - 1``.
        device: Of the sums.
    """

    default_metric = "miou"

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.sums = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: logits ``[B, classes, H, W]`` or classes ``[B, H, W]``, and labels ``[B, H, W]``.

        Raises:
            ValueError: As `count_pixels`.
        """
        predicted = output.argmax(dim=1) if output.ndim == target.ndim + 1 else output
        self.sums += count_pixels(predicted, target, self.num_classes).to(self.sums.device)

    def compute(self, distributed: bool = False) -> dict[str, Any]:
        """As `metrics_of`; with ``distributed`` of all processes together.

        Raises:
            ValueError: No pixel was counted.
        """
        sums = self.sums.clone()
        if distributed:
            dist.all_reduce(sums)
        return metrics_of(sums)


def _known(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
