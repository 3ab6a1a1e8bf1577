"""What attacks maximize: of logits ``[B, classes]`` and labels ``[B]``, one value a sample, large where it is fooled."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Its negative: large where the label is predicted."""
    return -F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit less the label's: positive where the sample is fooled."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return others(logits, labels).amax(1) - own


def targeted_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest other: positive where the label is predicted."""
    return -margin(logits, labels)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """DLR (arXiv 2003.01690, equation 6): the margin over the gap of the first and third logit, so that scale does not matter.

    Raises:
        ValueError: Fewer than 3 classes.
    """
    _check_classes("DLR", 3, logits)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR (arXiv 2003.01690, equation 7): ``targets`` over ``labels``.

    Raises:
        ValueError: Fewer than 4 classes.
    """
    _check_classes("Targeted DLR", 4, logits)
    ordered = logits.sort(dim=1, descending=True).values
    own, wanted = (logits.gather(1, index[:, None])[:, 0] for index in (labels, targets))
    return (wanted - own) / (ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + 1e-12)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the labels' out of the way, below all."""
    return logits.scatter(1, labels[:, None], torch.finfo(logits.dtype).min)


def _check_classes(name: str, least: int, logits: Tensor) -> None:
    if logits.shape[1] < least:
        raise ValueError(f"{name} needs {least} classes, but the model has {logits.shape[1]}; attack by cross-entropy.")
