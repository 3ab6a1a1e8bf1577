"""Segmentation metrics from accumulated areas, as mmsegmentation's ``IoUMetric`` defines them."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..evaluation.statistics import bootstrap_sums

__all__ = ["IGNORE_INDEX", "IoUMetric", "bootstrap", "constant_areas", "count_pixels", "metrics_of"]

IGNORE_INDEX = 255  # label of pixels that are not counted


def check_class_range(what: str, values: Tensor, num_classes: int) -> None:
    """Check that all values are class labels.

    Args:
        what: Beginning of the message, such as "Labels".
        values: Values to check, of any shape.
        num_classes: Number of classes.

    Raises:
        ValueError: Some value is not from 0 to ``num_classes - 1``.
    """
    if len(values) and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(
            f"{what} must be from 0 to {num_classes - 1} with {num_classes} classes, got {values.min()} to {values.max()}. Use "
            f"the label {IGNORE_INDEX} for pixels to ignore."
        )


@torch.no_grad()
def count_pixels(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count pixels per class. Pixels with the label 255 are not counted.

    Args:
        predicted: Predicted classes, of any shape.
        label: Labels of the same shape.
        num_classes: Number of classes. Labels are from 0 to ``num_classes - 1``.

    Returns:
        ``[3, classes]``: the number of pixels that are right, that are predicted and that are labeled.

    Raises:
        ValueError: The shapes differ, or a label is neither a class nor ignored.

    Example:
        >>> count_pixels(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), num_classes=2)
        tensor([[1, 0],
                [1, 1],
                [2, 0]])
    """
    if predicted.shape != label.shape:
        raise ValueError(
            f"Predictions must have the shape of the labels, {list(label.shape)}, got {list(predicted.shape)}. Interpolate the "
            "logits to the size of the labels."
        )
    kept = label != IGNORE_INDEX
    label, predicted = label[kept].long(), predicted[kept].long()
    check_class_range("Labels", label, num_classes)
    check_class_range("Predictions", predicted, num_classes)
    return torch.stack(
        [torch.bincount(values, minlength=num_classes) for values in (label[label == predicted], predicted, label)]
    )


def constant_areas(labeled: Tensor) -> Tensor:
    """Return the areas of the prediction of one class for all pixels: the class with the most labeled pixels.

    Args:
        labeled: ``[classes]``, the number of labeled pixels.

    Returns:
        ``[3, classes]``, as from `count_pixels`.

    Example:
        >>> metrics_of(constant_areas(torch.tensor([1, 3])))["miou"]
        37.5
    """
    most = torch.arange(len(labeled)) == labeled.argmax()
    return torch.stack([most * labeled, most * labeled.sum(), labeled])


def metrics_of(areas: Tensor) -> dict[str, Any]:
    """Compute metrics from areas.

    Args:
        areas: ``[3, classes]``, a sum of results of `count_pixels`.

    Returns:
        ``pixels``, their number; ``pixel_accuracy``, ``mean_accuracy`` and ``miou`` in percent; ``iou`` and
        ``accuracy_by_class``, lists in percent with one value per class. A class without pixels has the value None.

    Raises:
        ValueError: No pixel was counted.

    Example:
        >>> metrics_of(torch.tensor([[1, 0], [1, 1], [2, 0]]))["iou"]
        [50.0, 0.0]
    """
    n = int(areas[2].sum())
    if n == 0:
        raise ValueError(
            "The number of labeled pixels must be at least 1, got 0. Check that the split has labels to evaluate on."
        )
    percent = _percent(areas)
    return {
        "pixels": n,
        **{name: value.item() for name, value in percent.means.items()},
        "iou": _known(percent.iou),
        "accuracy_by_class": _known(percent.accuracy),
    }


def bootstrap(areas: Tensor) -> dict[str, Tensor]:
    """Compute metrics of 1000 bootstrap samples: images drawn with replacement.

    The draws depend only on the number of images, so differences of two models on the same images are paired.
    `imgproc_attn.evaluation.statistics.normal_interval` turns the values into confidence intervals.

    Args:
        areas: ``[images, 3, classes]``, results of `count_pixels`.

    Returns:
        ``[1000]`` values each of ``pixel_accuracy``, ``mean_accuracy`` and ``miou``, in percent.
    """
    return _percent(bootstrap_sums(areas)).means


class _Percent(NamedTuple):
    """IoU and accuracy per class, ``[..., classes]``, and means over classes or pixels, all in percent."""

    iou: Tensor
    accuracy: Tensor
    means: dict[str, Tensor]


def _percent(areas: Tensor) -> _Percent:
    right, predicted, labels = areas.double().unbind(dim=-2)
    iou, accuracy = 100 * right / (labels + predicted - right), 100 * right / labels
    of_all = 100 * right.sum(-1) / labels.sum(-1)
    return _Percent(iou, accuracy, {"pixel_accuracy": of_all, "mean_accuracy": accuracy.nanmean(-1), "miou": iou.nanmean(-1)})


class IoUMetric:
    """Mean IoU and accuracies over many images: call ``update`` per batch, then ``compute``, as with timm's evaluators.

    Intersections, predicted areas and labeled areas are summed over all images before they are divided. A class that is
    neither predicted nor labeled has the value None and is left out of means. Pixels with the label 255 are not counted.
    Sums are integers, so they are exact in any order and over any number of processes.

    Args:
        num_classes: Number of classes. Labels are from 0 to ``num_classes - 1``.
        device: Device of the sums.

    Example:
        >>> metric = IoUMetric(num_classes=2)
        >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]))
        >>> metric.compute()["miou"]
        25.0
    """

    default_metric = "miou"

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.sums = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            output: Logits ``[B, classes, H, W]`` or classes ``[B, H, W]``.
            target: Labels ``[B, H, W]``.

        Raises:
            ValueError: As `count_pixels`.
        """
        predicted = output.argmax(dim=1) if output.ndim == target.ndim + 1 else output
        self.sums += count_pixels(predicted, target, self.num_classes).to(self.sums.device)

    def compute(self, distributed: bool = False) -> dict[str, Any]:
        """Return the metrics of `metrics_of`.

        Args:
            distributed: Sum over all processes first.

        Raises:
            ValueError: No pixel was counted.
        """
        sums = self.sums.clone()
        if distributed:
            dist.all_reduce(sums)
        return metrics_of(sums)


def _known(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
