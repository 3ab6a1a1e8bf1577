"""Segmentation metrics by accumulated areas, as mmsegmentation's ``IoUMetric`` defines them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IGNORED = 255  # label of pixels that count nowhere


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
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)  # [label, prediction]

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: logits ``[B, classes, H, W]`` or classes ``[B, H, W]``, and labels ``[B, H, W]``.

        Raises:
            ValueError: Shapes that differ, or labels that are no class and not ignored.
        """
        predicted = output.argmax(dim=1) if output.ndim == target.ndim + 1 else output
        if predicted.shape != target.shape:
            raise ValueError(f"Predictions {list(predicted.shape)} and labels {list(target.shape)} differ in shape.")
        kept = target != IGNORED
        label, predicted = target[kept].long(), predicted[kept].long()
        for what, values in (("Labels", label), ("Predictions", predicted)):
            if len(values) and not 0 <= values.min() <= values.max() < self.num_classes:
                raise ValueError(
                    f"{what} range from {values.min()} to {values.max()}, but with {self.num_classes} classes they run from 0 "
                    f"to {self.num_classes - 1}; labels of {IGNORED} are ignored."
                )
        counts = torch.bincount(label * self.num_classes + predicted, minlength=self.num_classes**2)
        self.confusion += counts.view(self.num_classes, self.num_classes).to(self.confusion.device)

    def compute(self, distributed: bool = False) -> dict[str, Any]:
        """``pixel_accuracy``, ``mean_accuracy``, ``miou`` in percent, ``n`` pixels; ``iou`` and ``accuracy`` by class, None
        for what is not there.

        Raises:
            ValueError: No pixel was counted.
        """
        confusion = self.confusion.clone()
        if distributed:
            dist.all_reduce(confusion)
        n = int(confusion.sum())
        if n == 0:
            raise ValueError("No pixel to evaluate on: the split is empty, or all its labels are to be ignored.")
        right, labels, predicted = confusion.diagonal().double(), confusion.sum(1).double(), confusion.sum(0).double()
        iou, accuracy = 100 * right / (labels + predicted - right), 100 * right / labels
        return {
            "n": n,
            "pixel_accuracy": 100 * right.sum().item() / n,
            "mean_accuracy": accuracy.nanmean().item(),
            "miou": iou.nanmean().item(),
            "iou": _known(iou),
            "accuracy": _known(accuracy),
        }


def _known(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
