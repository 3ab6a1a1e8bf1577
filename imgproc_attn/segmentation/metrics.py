"""Segmentation metrics by accumulated areas, as mmsegmentation's ``IoUMetric`` defines them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IGNORED = 255  # label of pixels that count nowhere


@torch.no_grad()
def count_areas(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """``[3, classes]``: pixels of each class that are right, that are predicted, that are labelled; ignored ones count nowhere.

    Args:
        predicted: Classes, of any shape.
        label: Of the same shape.
        num_classes: Labels run from 0 to ``num_classes - 1``.

    Raises:
        ValueError: Shapes that differ, or labels that are no class and not ignored.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"Predictions {list(predicted.shape)} and labels {list(label.shape)} differ in shape.")
    kept = label != IGNORED
    label, predicted = label[kept].long(), predicted[kept].long()
    for what, values in (("Labels", label), ("Predictions", predicted)):
        if len(values) and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(
                f"{what} range from {values.min()} to {values.max()}, but with {num_classes} classes they run from 0 "
                f"to {num_classes - 1}; labels of {IGNORED} are ignored."
            )
    return torch.stack(
        [torch.bincount(values, minlength=num_classes) for values in (label[label == predicted], predicted, label)]
    )


def metrics_of(areas: Tensor) -> dict[str, Any]:
    """``pixel_accuracy``, ``mean_accuracy``, ``miou`` in percent, ``pixels``; ``iou`` and ``accuracy`` by class, None for what
    is not there.

    Args:
        areas: ``[3, classes]``, sums of `count_areas`.

    Raises:
        ValueError: No pixel was counted.
    """
    right, predicted, labels = areas.double()
    n = int(areas[2].sum())
    if n == 0:
        raise ValueError("No pixel to evaluate on: the split is empty, or all its labels are to be ignored.")
    iou, accuracy = 100 * right / (labels + predicted - right), 100 * right / labels
    return {
        "pixels": n,
        "pixel_accuracy": 100 * right.sum().item() / n,
        "mean_accuracy": accuracy.nanmean().item(),
        "miou": iou.nanmean().item(),
        "iou": _known(iou),
        "accuracy_by_class": _known(accuracy),
    }


class Areas:
    """Areas of classes over many images, in the protocol of timm's evaluators: ``update``, then ``compute``.

    Intersections, predicted and true areas are summed over all images first and divided then; a class that is neither predicted
    nor there is NaN, and left out of means. Pixels with the label 255 count nowhere. Sums are integers: exact in any order, and
    over processes.

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
            ValueError: As `count_areas`.
        """
        predicted = output.argmax(dim=1) if output.ndim == target.ndim + 1 else output
        self.sums += count_areas(predicted, target, self.num_classes).to(self.sums.device)

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
