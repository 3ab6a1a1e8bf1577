"""Intervals and comparisons: of shares, of models on the same samples, of models trained with the same seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor


class PairedDifference(NamedTuple):
    """Mean of paired differences and what is known of it.

    Attributes:
        mean: Of the differences.
        std: Their standard deviation (n - 1); NaN for one pair.
        lower: One-sided 95 % bound of the mean by Student's t; NaN for one pair.
    """

    mean: float
    std: float
    lower: float


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1), the latter NaN for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def normal_interval(value: float, draws: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval around a value, from the standard deviation of its bootstrap; undefined draws are left out.

    Percentiles would not do for mIoU: in draws that miss the only picture of a class it is lower, whatever the model.
    """
    known = [draw for draw in draws if not math.isnan(draw)]
    half = 1.96 * statistics.stdev(known) if len(known) > 1 else math.nan
    return value - half, value + half


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """``values - baseline``, pair by pair.

    Raises:
        ValueError: Lengths differ, or are 0.
    """
    if len(values) != len(baseline) or len(values) == 0:
        raise ValueError(f"paired_difference: {len(values)} values and {len(baseline)} of the baseline; give as many of both.")
    mean, std = mean_and_std([a - b for a, b in zip(values, baseline)])
    n = len(values)
    lower = mean - float(stdtrit(n - 1, 0.95)) * std / n**0.5 if n > 1 else math.nan
    return PairedDifference(mean, std, lower)


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


def area_under_precision_recall(known: Tensor, unknown: Tensor) -> float:
    """AUPR in percent of telling images of unknown classes by low confidence (ImageNet-O, arXiv 1907.07174).

    Args:
        known: ``[n]`` largest probabilities for images of the model's classes.
        unknown: ``[m]`` likewise for images of others, which are what is to be found.
    """
    from sklearn.metrics import average_precision_score  # a second to import

    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))])
    return 100 * float(average_precision_score(truth.numpy(), -torch.cat([known, unknown]).numpy()))
