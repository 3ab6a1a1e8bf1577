"""Confidence intervals of shares and of bootstrapped metrics such as mIoU, and paired comparisons of models.

Pairs are results on the same samples, or trainings with the same seed.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

__all__ = [
    "PairedDifference",
    "area_under_precision_recall",
    "bootstrap_sums",
    "mean_and_std",
    "normal_interval",
    "paired_difference",
    "paired_interval",
    "wilson_interval",
]


NUM_DRAWS, DRAWS_AT_ONCE = 1000, 100  # bootstrap samples


class PairedDifference(NamedTuple):
    """Mean of paired differences, with its spread and bound.

    Attributes:
        mean: Mean of the differences.
        std: Standard deviation of the differences (n - 1); NaN for one pair.
        lower: One-sided lower 95 % bound of the mean by Student's t; NaN for one pair.
    """

    mean: float
    std: float
    lower: float


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (n - 1), which is NaN for one value.

    Example:
        >>> mean_and_std([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def normal_interval(value: float, draws: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval around a value, from the standard deviation of its bootstrap. NaN draws are left out.

    Percentiles are not used because they do not suit mIoU: it is lower in draws without the only image of a class.
    """
    known = [draw for draw in draws if not math.isnan(draw)]
    half = 1.96 * statistics.stdev(known) if len(known) > 1 else math.nan
    return value - half, value + half


def bootstrap_sums(values: Tensor) -> Tensor:
    """Return sums over 1000 bootstrap samples: rows of ``values`` drawn with replacement.

    The draws depend only on the number of rows, so differences of two models on the same samples are paired.

    Args:
        values: ``[n, ...]``, one row per sample.

    Returns:
        ``[1000, ...]`` sums of the drawn rows, float64.

    Example:
        >>> bootstrap_sums(torch.ones(8, 2)).unique().tolist()
        [8.0]
    """
    n, generator, columns = len(values), np.random.default_rng(0), values.double().flatten(1)
    parts = []
    for size in [DRAWS_AT_ONCE] * (NUM_DRAWS // DRAWS_AT_ONCE):  # The counts of all draws may need too much memory.
        times = generator.multinomial(n, np.full(n, 1 / n), size=size)
        parts.append(torch.from_numpy(times).double() @ columns)
    return torch.cat(parts).view(NUM_DRAWS, *values.shape[1:])


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Return the mean of ``values - baseline`` over pairs, with its standard deviation and lower bound.

    Args:
        values: One number per pair, for example per training seed.
        baseline: Numbers of the baseline in the same order.

    Raises:
        ValueError: The lengths differ or are 0.

    Example:
        >>> paired_difference([3.0, 5.0], [1.0, 1.0]).mean
        3.0
    """
    if len(values) != len(baseline) or len(values) == 0:
        raise ValueError(
            f"paired_difference: values and baseline must have one equal length of at least 1, got {len(values)} and "
            f"{len(baseline)}. Give one number of each per pair."
        )
    mean, std = mean_and_std([a - b for a, b in zip(values, baseline)])
    n = len(values)
    lower = mean - float(stdtrit(n - 1, 0.95)) * std / n**0.5 if n > 1 else math.nan
    return PairedDifference(mean, std, lower)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the share ``correct / n``, in percent (Wilson 1927).

    The interval is also valid for shares near 0 and 1.

    Example:
        >>> [round(bound, 1) for bound in wilson_interval(9, 10)]
        [59.6, 98.2]
    """
    from scipy.stats import binomtest  # The import takes half a second.

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def paired_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the difference of two shares of the same samples, in percentage points.

    The method is Newcombe's method 10 (1998), with continuity correction. It uses Wilson's intervals of both shares and their
    correlation, and is also valid where few or no samples differ.

    Args:
        both: Number of samples that count in both shares.
        first: Number of samples that count only in the first share.
        second: Number of samples that count only in the second share.
        neither: Number of samples that count in neither share.

    Example:
        >>> [round(bound, 1) for bound in paired_interval(80, 10, 2, 8)]
        [1.0, 15.5]
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


def area_under_precision_recall(known: Tensor, unknown: Tensor) -> float:
    """Return the AUPR, in percent, of detecting images of unknown classes by low confidence (ImageNet-O, arXiv 1907.07174).

    Args:
        known: ``[n]`` largest probabilities for images of the model's classes.
        unknown: ``[m]`` largest probabilities for images of other classes, which are the positives.

    Example:
        >>> area_under_precision_recall(torch.tensor([0.9, 0.8]), torch.tensor([0.2, 0.1]))
        100.0
    """
    from sklearn.metrics import average_precision_score  # The import takes a second.

    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))])
    return 100 * float(average_precision_score(truth.numpy(), -torch.cat([known, unknown]).numpy()))
