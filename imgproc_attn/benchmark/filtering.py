"""Filters on a photograph, compared with other libraries."""

from functools import cached_property, partial
from typing import Any

import kornia
import torch
import torch.nn.functional as F

from ..image_filters import bilateral_filter, non_local_means
from ..utils.progress import progress_bar
from .photographs import photograph
from .timing import WARM_UP_ROUNDS, Case, Step, baseline_of, build_cases, measure, summarize, synchronizer

__all__ = ["FILTERS", "FilteringWork", "benchmark_filtering"]

# To add a case, add a line.
FILTERS = (
    Case("kornia bilateral_blur", lambda work: work.kornia_bilateral, baseline=True),
    Case("bilateral_filter", lambda work: partial(bilateral_filter, work.image, 0.1 * 2**0.5, 3.0 * 2**0.5, 11)),
    Case("non_local_means", lambda work: partial(non_local_means, work.image, 0.7, 5, 11)),
    Case("scikit-image denoise_bilateral", lambda work: work.skimage_bilateral, package="skimage"),
    Case("scikit-image denoise_nl_means, fast", lambda work: work.skimage_nl_means(True), package="skimage"),
    Case("scikit-image denoise_nl_means, slow", lambda work: work.skimage_nl_means(False), package="skimage"),
)


class FilteringWork:
    """Filters on a 512 x 512 color photograph with an 11 x 11 window.

    Args:
        device: Device of the filters that run on tensors.
    """

    def __init__(self, device: str) -> None:
        china = torch.tensor(photograph("china")).permute(2, 0, 1)[None] / 255
        self.image = F.interpolate(china, (512, 512), mode="bilinear", antialias=True).to(device)
        self.array = self.image[0].permute(1, 2, 0).contiguous().cpu().numpy()

    @cached_property
    def kornia_bilateral(self) -> Step:
        """Bilateral filter of kornia, with the color distance of this package."""
        blur = partial(kornia.filters.bilateral_blur, color_distance_type="l2")
        return partial(blur, self.image, (11, 11), 0.1, (3.0, 3.0))

    @cached_property
    def skimage_bilateral(self) -> Step:
        """Bilateral filter of scikit-image."""
        from skimage.restoration import denoise_bilateral

        return partial(denoise_bilateral, self.array, 11, 0.1, 3.0, channel_axis=-1)

    def skimage_nl_means(self, fast: bool) -> Step:
        """Return the non-local means of scikit-image, in fast mode if ``fast``."""
        from skimage.restoration import denoise_nl_means

        return partial(denoise_nl_means, self.array, 5, 5, 0.08, channel_axis=-1, fast_mode=fast)


def benchmark_filtering(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time the filters, kornia's and (if installed) scikit-image's on a 512 x 512 color photograph with an 11 x 11 window.

    Non-local means has patches of 5 x 5 pixels. scikit-image's fast mode uses 4 x 4 pixels and an integral image.
    """
    steps = build_cases(FILTERS, FilteringWork(device))
    with progress_bar(runs + WARM_UP_ROUNDS, "rounds", "filtering") as bar:
        return summarize(measure(steps, runs, synchronizer(device), bar), baseline_of(FILTERS))
