"""Summary numbers of corrupted images.

Each number has its own name, because papers use "mCE" for different quantities.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from ..corruption_names import COMMON, EXTRA

__all__ = ["ALEXNET_ERRORS", "SEVERITIES", "corruption_summary"]

# Errors of AlexNet on ImageNet-C, as the mean over the five severities (arXiv 1903.12261, the authors' table).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = (1, 2, 3, 4, 5)


def corruption_summary(accuracies: Mapping[str, Mapping[float, float]], imagenet: bool) -> dict[str, Any]:
    """Return means over corruptions. Means over the 15 corruptions need all of them, at all five severities.

    Args:
        accuracies: ``{corruption: {severity: accuracy in percent}}``.
        imagenet: Whether the classes are those of ImageNet-1k, so that dividing by AlexNet's errors makes sense.

    Returns:
        A dictionary with these entries, in percent:

        - ``per_corruption``: mean accuracy over the given severities, by corruption.
        - ``mean_accuracy``: mean over the 15 corruptions and 5 severities.
        - ``mean_error``: 100 minus ``mean_accuracy``.
        - ``mce_alexnet``: mean over corruptions of their error divided by AlexNet's error.
        - ``mean_accuracy_extra``: mean over the 4 extra corruptions.

    Example:
        >>> corruption_summary({"fog": {1: 80.0, 2: 70.0}}, imagenet=False)
        {'per_corruption': {'fog': 75.0}}
    """
    whole = {name for name, by_severity in accuracies.items() if set(by_severity) == set(SEVERITIES)}
    means = {name: statistics.fmean(by_severity.values()) for name, by_severity in accuracies.items()}
    summary: dict[str, Any] = {"per_corruption": means}
    if whole >= set(COMMON):
        mean = statistics.fmean(means[name] for name in COMMON)
        summary |= {"mean_accuracy": mean, "mean_error": 100 - mean}
        if imagenet:
            ratios = [(100 - means[name]) / ALEXNET_ERRORS[name] for name in COMMON]
            summary["mce_alexnet"] = statistics.fmean(ratios)
    if whole >= set(EXTRA):
        summary["mean_accuracy_extra"] = statistics.fmean(means[name] for name in EXTRA)
    return summary
