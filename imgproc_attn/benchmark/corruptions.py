"""Corruptions of one photograph."""

from functools import partial
from operator import methodcaller
from typing import Any

from ..evaluation.corruption_names import CORRUPTIONS
from ..evaluation.imagenet_c import ImageNetC
from ..utils.progress import progress_bar
from .photographs import photograph
from .timing import WARM_UP_ROUNDS, Case, Step, baseline_of, build_cases, measure, summarize

__all__ = ["CORRUPTION_CASES", "CorruptionWork", "benchmark_corruptions"]

CORRUPTION_CASES = tuple(
    Case(name, methodcaller("step", name), baseline=name == "jpeg_compression") for name in CORRUPTIONS if name != "frost"
)


class CorruptionWork:
    """Corruptions of severity 3 on a 224 x 224 photograph."""

    def __init__(self) -> None:
        self.image = photograph("china")[100:324, 200:424].transpose(2, 0, 1)

    def step(self, name: str) -> Step:
        """Return the work of a data loading process for one image."""
        return partial(ImageNetC(name, 3).corrupt, self.image, 0)


def benchmark_corruptions(runs: int) -> list[dict[str, Any]]:
    """Time each corruption of ImageNet-C except frost, at severity 3, on one 224 x 224 photograph."""
    steps = build_cases(CORRUPTION_CASES, CorruptionWork())
    with progress_bar(runs + WARM_UP_ROUNDS, "rounds", "corruptions") as bar:
        rows = summarize(measure(steps, runs, lambda: None, bar), baseline_of(CORRUPTION_CASES))
    return [{**row, "images_per_second": 1 / row["median_s"]} for row in rows]
