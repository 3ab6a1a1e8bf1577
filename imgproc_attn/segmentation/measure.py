"""Pixels as samples' answers: what segmenters are judged by in the evaluations of `imgproc_attn.evaluation`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..evaluation.attacks import Passes
from ..evaluation.conditions import Condition, Judge, SampleAttack
from ..evaluation.contract import check_batch, finite_logits
from ..evaluation.evaluator import Batch
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.flags import SampleResults, of_common_samples
from ..evaluation.imagenet_c.errors import corruption_summary
from ..evaluation.sanity import POINTS
from ..evaluation.statistics import normal_interval
from .attacks import PixelAttack
from .inference import SlidingWindowModel, check_scales, check_windows, classes_of, segment
from .metrics import bootstrap, count_pixels, metrics_of
from .overlays import draw_segmented
from .presets import PIXEL_ATTACKS, PIXEL_PRESETS
from .sanity import pixel_checks

FOUND = "; find out why before you believe either number"


class PixelsJudged(NamedTuple):
    """What came of a batch of pictures with a label a pixel.

    Attributes:
        areas: ``[B, 3, classes]``, as `count_pixels`.
        images: ``[B, C, H, W]`` that were judged: those given, or adversarial ones.
        scores: ``[B]``, under attack the distance of the images from those given.
    """

    areas: Tensor
    images: Tensor
    scores: Tensor

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """Scores, and areas as ``[class, right, predicted, labeled]`` of the classes that a picture has."""
        return {"areas": [_sparse(areas) for areas in self.areas.cpu()], "scores": self.scores.tolist()}


def _sparse(areas: Tensor) -> list[list[int]]:
    there = areas.any(dim=0).nonzero()[:, 0]
    return torch.cat([there[:, None], areas[:, there].T], dim=1).tolist()


def _judged(predicted: Tensor, num_classes: int, images: Tensor, labels: Tensor, distances: Tensor) -> PixelsJudged:
    areas = [count_pixels(found, label, num_classes) for found, label in zip(predicted, labels)]
    return PixelsJudged(torch.stack(areas), images, distances)


@dataclass(frozen=True)
class SlidingWindow:
    """How a segmenter looks at a picture.

    Args:
        window: Side of sliding windows; None for the whole picture.
        stride: Between them. Default: ``window``.
    """

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        check_windows(self.window, self.stride)
        object.__setattr__(self, "stride", self.stride or self.window)

    def over(self, model: nn.Module) -> nn.Module:
        """The model, looking so."""
        return SlidingWindowModel(model, self.window, self.stride)


@dataclass(frozen=True)
class PixelsAsGiven:
    """Pictures as they are, or several views of them, a strip of windows at a time.

    Args:
        num_classes: Of the model.
        windows: How it looks at a picture.
        scales: Factors of the size, over which probabilities are averaged.
        flip: Mirror images too.

    Raises:
        ValueError: Scales that are not positive.
    """

    num_classes: int
    windows: SlidingWindow = SlidingWindow()
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        check_scales(self.scales)

    @property
    def passes(self) -> Passes:
        return Passes(math.ceil(sum(scale**2 for scale in self.scales)) * (1 + self.flip), 0)  # in units of the image

    @torch.no_grad()
    def classes(self, model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """``[height, width]`` of an image ``[C, H, W]`` in [0, 1]."""
        window, stride = self.windows.window, self.windows.stride
        return segment(model, image, window, stride, size=size, scales=self.scales, flip=self.flip)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> PixelsJudged:
        images = check_batch(model, images)
        predicted = torch.stack([self.classes(model, image, (labels.shape[-2], labels.shape[-1])) for image in images])
        return _judged(predicted, self.num_classes, images, labels, torch.zeros(len(images)))


@dataclass(frozen=True)
class PixelsUnderAttack:
    """Pictures under attack.

    Args:
        attack: Of `PIXEL_ATTACKS`.
        windows: How the model looks at a picture, the attack sees all of them.
    """

    attack: PixelAttack
    windows: SlidingWindow = SlidingWindow()

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(forward + 1, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> PixelsJudged:
        asked = self.windows.over(model)
        images = check_batch(model, images, bounds=self.attack.threat.bounds)
        found = self.attack.worst(asked, images, labels, ids.cpu())
        logits = finite_logits(asked, found, 4)
        predicted = classes_of(logits, (labels.shape[-2], labels.shape[-1]))
        return _judged(predicted, logits.shape[1], found, labels, self.attack.threat.distance(found, images))


@dataclass(frozen=True)
class PixelMeasure:
    """Areas of classes, summed over pictures and divided then.

    Attributes:
        class_names: In the order of their labels.
        windows: How a model looks at pictures.
        scales: As in `PixelsAsGiven`, of pictures that are not attacked.
        flip: Likewise.
    """

    class_names: tuple[str, ...]
    windows: SlidingWindow = SlidingWindow()
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    metrics = ("miou", "pixel_accuracy", "mean_accuracy")
    checked = 8
    attacks = PIXEL_ATTACKS
    presets = PIXEL_PRESETS

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def clean(self) -> PixelsAsGiven:
        return PixelsAsGiven(self.num_classes, self.windows, self.scales, self.flip)

    def under(self, attack: SampleAttack) -> Judge:
        if not isinstance(attack, PixelAttack):
            raise ValueError(
                f"{type(attack).__name__} attacks labels of images; of pixels there are {', '.join(PIXEL_ATTACKS)}."
            )
        return PixelsUnderAttack(attack, self.windows)

    def view(self, model: nn.Module) -> nn.Module:
        return self.windows.over(model)

    def _areas(self, flags: SampleResults) -> Tensor:
        """``[n, 3, classes]``."""
        areas = torch.zeros(len(flags.ids), 3, self.num_classes, dtype=torch.int64)
        for i, picture in enumerate(flags.column("areas")):
            rows = torch.tensor(picture, dtype=torch.int64).view(-1, 4)
            areas[i][:, rows[:, 0]] = rows[:, 1:].T
        return areas

    def count(self, flags: SampleResults) -> dict[str, Any]:
        return {"n": len(flags.ids), **metrics_of(self._areas(flags).sum(dim=0))}

    def intervals(self, flags: SampleResults) -> dict[str, list[float]]:
        if len(flags.ids) < 2:  # of one picture all draws are equal
            return {name: [0.0, 100.0] for name in self.metrics}
        found = self.count(flags)
        return {name: list(normal_interval(found[name], draws)) for name, draws in self.draws(flags).items()}

    def draws(self, flags: SampleResults) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in bootstrap(self._areas(flags)).items()}

    def of_samples(self, flags: SampleResults) -> list[float]:
        sums = self._areas(flags).sum(dim=2).tolist()
        return [round(right / labeled, 6) if labeled else math.nan for right, _, labeled in sums]

    def summarize(self, by_corruption: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
        found = corruption_summary(by_corruption, False)
        return {key.replace("mean_accuracy", "mean_miou"): found[key] for key in found if key != "mean_error"}

    def check(self, model: nn.Module, batches: Sequence[Batch], attacks: Sequence[SampleAttack], seed: int) -> SanityReport:
        pixel_attacks = [attack for attack in attacks if isinstance(attack, PixelAttack)]
        pictures = [(images, labels) for images, labels, _ in batches]
        return pixel_checks(self.view(model), pictures, pixel_attacks, self.windows.window or 512, seed)

    def doubt(self, rows: Sequence[Mapping[str, Any]], flags: Mapping[str, SampleResults]) -> list[Finding]:
        found, metric = [], self.metrics[0]
        attacked = [row for row in rows if "eps" in row]
        for row in attacked:
            for other in (o for o in attacked if o["norm"] == row["norm"] and row[metric] > o[metric] + POINTS):
                told = f"{row['name']} leaves {row[metric]:.1f} % mIoU, {other['name']} {other[metric]:.1f} %"
                if row["family"] == other["family"] and row["eps"] > other["eps"] and _stepwise(row):
                    found.append(Finding("mIoU rises with eps", f"{told}: a larger ball holds the smaller one{FOUND}."))
                if _stepwise(row) and not _stepwise(other) and row["eps"] == other["eps"]:
                    found.append(Finding("steps are weaker than one", f"{told}: gradients may be masked{FOUND}."))
        for row in attacked:
            if row[metric] > rows[0][metric] + POINTS:
                told = f"{row['name']} leaves {row[metric]:.1f} % mIoU, more than the {rows[0][metric]:.1f} % without attack"
                found.append(Finding("an attack that helps", f"{told}{FOUND}."))
        return found

    def broken(self, clean: SampleResults, attacked: SampleResults) -> Tensor:
        clean, attacked = of_common_samples({"clean": clean, "attacked": attacked}).values()
        before, after = (torch.tensor(self.of_samples(flags)) for flags in (clean, attacked))
        order = (after - before).nan_to_num(0).argsort()
        return clean.ids[order[: int((after < before).sum())]]

    def gallery(self, model: Any, batch: Batch, condition: Condition, label: str) -> Figure:
        images, labels, ids = batch
        found = condition.judge(model, images, labels, ids).images
        size = (images.shape[-2], images.shape[-1])
        one_view = PixelsAsGiven(self.num_classes, self.windows)
        clean, attacked = ([one_view.classes(model, x, size) for x in pictures] for pictures in (images, found))
        columns = {"picture": list(images), "labels": list(labels), "clean": clean}
        columns |= {f"{condition.name}, picture": list(found), condition.name: attacked}
        return draw_segmented(label, columns, self.class_names)


def _stepwise(row: Mapping[str, Any]) -> bool:
    return not row["family"].startswith("FGSM")
