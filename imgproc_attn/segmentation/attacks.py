"""Attacks on segmentation: the loss is of all pixels that have a label, and so is what counts."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.attacks import FGSM, MIFGSM, PGD
from ..evaluation.attacks.base import Objective, TargetAttack
from ..evaluation.contract import finite_logits
from .inference import classes_of
from .metrics import IGNORE_INDEX, check_classes


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B]``: the mean of a picture's labeled pixels.

    Args:
        logits: ``[B, classes, h, w]``; enlarged or reduced bilinearly to the size of the labels.
        labels: ``[B, H, W]``.
    """
    return _mean_of_labeled(_losses(logits, labels)[0], labels)


def wrong_pixels_weighted(share: float, logits: Tensor, labels: Tensor) -> Tensor:
    """``[B]``: the same, of right pixels times ``1 - share`` and of wrong ones times ``share`` (arXiv 2207.12391)."""
    losses, logits = _losses(logits, labels)
    right = logits.argmax(dim=1) == labels
    return _mean_of_labeled(torch.where(right, 1 - share, share) * losses, labels)


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B]``: of right pixels alone, divided by the number of all labeled ones (L_MCE of arXiv 2306.12941)."""
    losses, logits = _losses(logits, labels)
    return _mean_of_labeled((logits.argmax(dim=1) == labels) * losses, labels)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy ``[B, H, W]``, 0 where ignored, and the logits at the size of the labels."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none"), logits


def _mean_of_labeled(values: Tensor, labels: Tensor) -> Tensor:
    return values.flatten(1).sum(1) / (labels != IGNORE_INDEX).flatten(1).sum(1).clamp_min(1)


class PixelAttack(TargetAttack):
    """An attack on the labels of pixels: it follows their loss and lowers the number of right pixels."""

    def objective_at(self, step: int) -> Objective:
        return pixel_cross_entropy

    def quality(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return right_pixels(model, images, targets)


def right_pixels(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` numbers of labeled pixels that have the label predicted.

    Raises:
        TypeError: As `check_logits`.
        ValueError: As `check_logits`, or labels that are not one map of classes, or ignored, per image.
        FloatingPointError: Logits that are not finite.
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
    check_classes("Labels", labels[labels != IGNORE_INDEX], logits.shape[1])


class PixelFGSM(PixelAttack, FGSM):
    """`FGSM` on the pixels' loss."""


class PixelPGD(PixelAttack, PGD):
    """`PGD` on the pixels' loss; the last point of a restart is its own."""


class PixelMIFGSM(PixelAttack, MIFGSM):
    """`MIFGSM` on the pixels' loss."""


class SegPGD(PixelPGD):
    """PGD that first follows the pixels that are still right, and ever more also those that are wrong (arXiv 2207.12391)."""

    def objective_at(self, step: int) -> Objective:
        return partial(wrong_pixels_weighted, step / (2 * self.steps))  # lambda of algorithm 1, whose steps count from 1


class MaskedPGD(PixelPGD):
    """PGD on the pixels that are still right: what is wrong already costs nothing of the step (arXiv 2306.12941).

    In a large ball most pixels are soon wrong, and a mean over all of them follows those that are wrong for sure.
    """

    def objective_at(self, step: int) -> Objective:
        return masked_cross_entropy
