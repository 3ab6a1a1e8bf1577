"""The numbers told of corrupted images, each under its own name, for papers mean different things by "mCE"."""

import statistics
from collections.abc import Mapping
from typing import Any

from ..corruption_names import COMMON, EXTRA

# Errors of AlexNet on ImageNet-C (arXiv 1903.12261, the authors' table), the mean of the five severities.
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


def corruption_summary(accuracies: Mapping[str, Mapping[int, float]], imagenet: bool) -> dict[str, Any]:
    """Means over corruptions; those over the 15 only if all of them are there, at all five severities.

    Args:
        accuracies: ``{corruption: {severity: accuracy in percent}}``.
        imagenet: The task is ImageNet-1k's, so that AlexNet's errors mean something.

    Returns:
        ``mean_accuracy`` and ``mean_error`` (its rest to 100) of the 15 corruptions and 5 severities, in percent;
        ``mce_alexnet``: the mean over corruptions of their error divided by AlexNet's, in percent; ``mean_accuracy_extra`` of
        the 4 extra ones; ``per_corruption``, the mean of the severities that were asked for.
    """
    whole = {name for name, by_severity in accuracies.items() if set(by_severity) == set(SEVERITIES)}
    means = {name: statistics.fmean(by_severity.values()) for name, by_severity in accuracies.items()}
    found: dict[str, Any] = {"per_corruption": means}
    if whole >= set(COMMON):
        mean = statistics.fmean(means[name] for name in COMMON)
        found |= {"mean_accuracy": mean, "mean_error": 100 - mean}
        if imagenet:
            ratios = [(100 - means[name]) / ALEXNET_ERRORS[name] for name in COMMON]
            found["mce_alexnet"] = statistics.fmean(ratios)
    if whole >= set(EXTRA):
        found["mean_accuracy_extra"] = statistics.fmean(means[name] for name in EXTRA)
    return found
