"""Counting right answers: top-1 and top-5, exact over processes, with their uncertainty."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..data import UNREADABLE_LABEL


class TopAccuracy:
    """Loss, top-1 and top-5 of logits, in the protocol of timm's evaluators: ``update``, then ``compute``.

    Images with the label -1 count nowhere.

    Args:
        device: Of the counts.
    """

    default_metric = "top1"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # images, loss, top-1, top-5

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: logits ``[B, classes]`` and labels ``[B]``."""
        kept = target != UNREADABLE_LABEL
        output, target = output[kept].float(), target[kept]
        found = output.topk(min(5, output.shape[1]), dim=1).indices == target[:, None]
        loss = F.cross_entropy(output, target, reduction="sum")
        self._sums += torch.stack([kept.sum(), loss, found[:, :1].sum(), found.sum()])

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """``n``, and mean ``loss``, ``top1`` and ``top5`` in percent; with ``distributed`` of all processes together.

        Raises:
            ValueError: No image was counted.
        """
        sums = self._sums.clone()
        if distributed:
            dist.all_reduce(sums)
        n, loss, top1, top5 = sums.tolist()
        if n == 0:
            raise ValueError("No image to evaluate on: the split is empty, or none of its images could be read.")
        return {"n": int(n), "loss": loss / n, "top1": 100 * top1 / n, "top5": 100 * top5 / n}


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, in percent (Wilson 1927), which is sound for shares near 0 and 1.

    Example:
        >>> [round(bound, 1) for bound in wilson_interval(9, 10)]
        [59.6, 98.2]
    """
    from scipy.stats import binomtest  # takes half a second to import

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def paired_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """The 95 % confidence interval of the difference of two shares of the same samples, in percentage points.

    Newcombe's method 10 (1998): from Wilson's intervals of both shares and their correlation, continuity corrected; sound where
    few samples differ, or none.

    Args:
        both: Samples that count in both.
        first: In the first alone.
        second: In the second alone.
        neither: In none.
    """
    n = both + first + second + neither
    k, m = both + first, both + second
    covariance = float(both * neither - first * second)
    covariance = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    margins = k * (n - k) * m * (n - m)
    correlation = covariance / math.sqrt(margins) if margins else 0.0
    (k_low, k_high), (m_low, m_high) = wilson_interval(k, n), wilson_interval(m, n)
    p, q = 100 * k / n, 100 * m / n

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * correlation * a * b + b**2, 0.0))

    return p - q - reach(p - k_low, m_high - q), p - q + reach(k_high - p, q - m_low)


@torch.no_grad()
def evaluate_loader(
    model: Callable[[Tensor], Tensor],
    loader: Any,
    evaluator: Any,
    autocast: Callable[[], Any],
    distributed: bool = False,
) -> dict[str, float]:
    """Run ``model`` over a loader and let ``evaluator`` count."""
    for images, targets in loader:
        with autocast():
            output = model(images)
        evaluator.update(output, targets)
    return evaluator.compute(distributed)


def area_under_precision_recall(known: Tensor, unknown: Tensor) -> float:
    """AUPR in percent of telling images of unknown classes by low confidence (ImageNet-O, arXiv 1907.07174).

    Args:
        known: ``[n]`` largest probabilities for images of the model's classes.
        unknown: ``[m]`` likewise for images of others, which are what is to be found.
    """
    from sklearn.metrics import average_precision_score  # a second to import

    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))])
    return 100 * float(average_precision_score(truth.numpy(), -torch.cat([known, unknown]).numpy()))
