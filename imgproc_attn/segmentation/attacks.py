"""Attacks on segmentation models. Loss and score are computed over all labeled pixels."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.attacks import FGSM, MIFGSM, PGD
from ..evaluation.attacks.base import Objective, TargetAttack
from ..evaluation.contract import finite_logits
from .inference import classes_of
from .metrics import IGNORE_INDEX, check_class_range

__all__ = [
    "MaskedPGD",
    "PixelAttack",
    "PixelFGSM",
    "PixelMIFGSM",
    "PixelPGD",
    "SegPGD",
    "masked_cross_entropy",
    "pixel_cross_entropy",
    "right_pixels",
    "wrong_pixels_weighted",
]


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy ``[B]``, averaged over the labeled pixels of each image.

    Args:
        logits: ``[B, classes, h, w]``, interpolated bilinearly to the size of the labels.
        labels: ``[B, H, W]``. Pixels with the label 255 are ignored.

    Example:
        >>> pixel_cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8))
        tensor([0.6931])
    """
    return _mean_of_labeled(_losses(logits, labels)[0], labels)


def wrong_pixels_weighted(share: float, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the weighted cross-entropy ``[B]`` of SegPGD, averaged over the labeled pixels of each image (arXiv 2207.12391).

    Args:
        share: Weight of misclassified pixels. Correctly classified pixels have the weight ``1 - share``.
        logits: ``[B, classes, h, w]``, interpolated bilinearly to the size of the labels.
        labels: ``[B, H, W]``. Pixels with the label 255 are ignored.
    """
    losses, logits = _losses(logits, labels)
    right = logits.argmax(dim=1) == labels
    return _mean_of_labeled(torch.where(right, 1 - share, share) * losses, labels)


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy ``[B]`` of correctly classified pixels, divided by the number of labeled pixels.

    This is L_MCE of arXiv 2306.12941. Arguments are those of `pixel_cross_entropy`.
    """
    losses, logits = _losses(logits, labels)
    return _mean_of_labeled((logits.argmax(dim=1) == labels) * losses, labels)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy ``[B, H, W]``, 0 for ignored pixels, and the logits at the size of the labels."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none"), logits


def _mean_of_labeled(values: Tensor, labels: Tensor) -> Tensor:
    return values.flatten(1).sum(1) / (labels != IGNORE_INDEX).flatten(1).sum(1).clamp_min(1)


class PixelAttack(TargetAttack):
    """Attack on pixel labels. It increases their loss to lower the number of correctly classified pixels."""

    def objective_at(self, step: int) -> Objective:
        return pixel_cross_entropy

    def quality(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return right_pixels(model, images, targets)


def right_pixels(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the number ``[B]`` of correctly classified pixels per image. Unlabeled pixels do not count.

    Args:
        model: Maps images to logits ``[B, classes, h, w]``.
        images: ``[B, C, H, W]`` that the model takes.
        labels: ``[B, H', W']`` class indices. Pixels with the label 255 are ignored.

    Raises:
        TypeError: `check_logits` rejects the type of the output.
        ValueError: `check_logits` rejects the output, or the labels are not one map of class indices per image.
        FloatingPointError: Some logits are not finite.
    """
    logits = finite_logits(model, images, 4)
    _check_maps(labels, logits)
    return (classes_of(logits, (labels.shape[-2], labels.shape[-1])) == labels).flatten(1).sum(1)


def _check_maps(labels: Tensor, logits: Tensor) -> None:
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
        raise ValueError(
            f"Label maps must be whole numbers [{len(logits)}, height, width], got {labels.dtype} of shape "
            f"{list(labels.shape)}. Give one map per image."
        )
    check_class_range("Labels", labels[labels != IGNORE_INDEX], logits.shape[1])


class PixelFGSM(PixelAttack, FGSM):
    """`FGSM` on the loss of all labeled pixels."""


class PixelPGD(PixelAttack, PGD):
    """`PGD` on the loss of all labeled pixels. The result of a restart is its last point."""


class PixelMIFGSM(PixelAttack, MIFGSM):
    """`MIFGSM` on the loss of all labeled pixels."""


class SegPGD(PixelPGD):
    """PGD with a weighted loss (arXiv 2207.12391).

    At first, only correctly classified pixels count. The weight of misclassified pixels grows with each step.
    """

    def objective_at(self, step: int) -> Objective:
        return partial(wrong_pixels_weighted, step / (2 * self.steps))  # lambda of algorithm 1; its steps count from 1


class MaskedPGD(PixelPGD):
    """PGD on pixels that are still correctly classified (arXiv 2306.12941).

    In a large ball, most pixels are soon misclassified. They would then dominate the mean loss over all pixels.
    """

    def objective_at(self, step: int) -> Objective:
        return masked_cross_entropy
