"""Comparisons between models trained with the same seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit


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
