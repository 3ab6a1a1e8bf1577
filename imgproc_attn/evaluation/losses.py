"""Objectives that attacks maximize.

Each maps logits ``[B, classes]`` and labels ``[B]`` to ``[B]`` values, which are large for fooled samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cross_entropy",
    "difference_of_logits_ratio",
    "margin",
    "others",
    "targeted_cross_entropy",
    "targeted_difference_of_logits_ratio",
    "targeted_margin",
]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the ``[B]`` cross-entropies of the labels."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the ``[B]`` negative cross-entropies, which are large where the label is predicted."""
    return -F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus the true-class logit ``[B]``. It is positive where the sample is fooled."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return others(logits, labels).amax(1) - own


def targeted_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit minus the largest other logit ``[B]``. It is positive where the label is predicted."""
    return -margin(logits, labels)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio (DLR, arXiv 2003.01690, equation 6) ``[B]``.

    It is the margin divided by the gap between the largest and the third largest logit, so the scale of the logits cancels.

    Raises:
        ValueError: There are fewer than 3 classes.
    """
    _check_classes("DLR", 3, logits)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted DLR (arXiv 2003.01690, equation 7) ``[B]``, large where ``targets`` beat ``labels``.

    Raises:
        ValueError: There are fewer than 4 classes.
    """
    _check_classes("Targeted DLR", 4, logits)
    ordered = logits.sort(dim=1, descending=True).values
    own, wanted = (logits.gather(1, index[:, None])[:, 0] for index in (labels, targets))
    return (wanted - own) / (ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + 1e-12)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits with the true-class entry set to the lowest value of the dtype."""
    return logits.scatter(1, labels[:, None], torch.finfo(logits.dtype).min)


def _check_classes(name: str, least: int, logits: Tensor) -> None:
    if logits.shape[1] < least:
        raise ValueError(f"{name}: the model must have at least {least} classes, got {logits.shape[1]}. Use APGD-CE instead.")
