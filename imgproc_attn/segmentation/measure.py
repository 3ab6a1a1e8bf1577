"""Pixels as samples' answers: what segmenters are judged by in the evaluations of `imgproc_attn.evaluation`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..evaluation.attacks import Attack, Passes
from ..evaluation.attacks.base import check_input, finite_logits
from ..evaluation.conditions import Condition, Judge, SampleAttack
from ..evaluation.flags import Flags
from ..evaluation.imagenet_c.errors import corruption_summary
from ..evaluation.measures import Batch
from ..evaluation.sanity import POINTS, Finding, check_gradients, check_outputs
from ..evaluation.threat import ThreatModel
from .attacks import PIXEL_ATTACKS, PIXEL_PRESETS, pixel_cross_entropy
from .inference import classes_of, multi_scale
from .metrics import count_areas, metrics_of
from .overlays import draw_segmented

FOUND = "; find out why before you believe either number"


class PixelsJudged(NamedTuple):
    """What came of a batch of pictures with a label a pixel.

    Attributes:
        areas: ``[B, 3, classes]``, as `count_areas`.
        images: ``[B, C, H, W]`` that were judged: those given, or adversarial ones.
        scores: ``[B]``, under attack the distance of the images from those given.
    """

    areas: Tensor
    images: Tensor
    scores: Tensor

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """Scores, and areas as ``[class, right, predicted, labelled]`` of the classes that a picture has."""
        return {"areas": [_sparse(areas) for areas in self.areas.cpu()], "scores": self.scores.tolist()}


def _sparse(areas: Tensor) -> list[list[int]]:
    there = areas.any(dim=0).nonzero()[:, 0]
    return torch.cat([there[:, None], areas[:, there].T], dim=1).tolist()


def _judged(logits: Tensor, images: Tensor, labels: Tensor, distances: Tensor) -> PixelsJudged:
    """Answers at the size of the labels."""
    predicted = classes_of(logits, (labels.shape[-2], labels.shape[-1]))
    areas = [count_areas(found, label, logits.shape[1]) for found, label in zip(predicted, labels)]
    return PixelsJudged(torch.stack(areas), images, distances)


@dataclass(frozen=True)
class PixelsAsGiven:
    """Pictures as they are, or several views of them.

    Args:
        scales: Factors of the size, over which probabilities are averaged.
        flip: Mirror images too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> Passes:
        return Passes(len(self.scales) * (1 + self.flip), 0)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> PixelsJudged:
        check_input(model, images)
        one_view = self.scales == (1.0,) and not self.flip
        logits = finite_logits(model, images) if one_view else multi_scale(model, images, self.scales, self.flip)
        return _judged(logits, images, labels, torch.zeros(len(images)))


@dataclass(frozen=True)
class PixelsUnderAttack:
    """Pictures under attack; of several restarts the one that leaves the fewest right pixels counts, picture by picture.

    Args:
        attack: Of `PIXEL_ATTACKS`.
    """

    attack: Attack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes_a_restart
        return Passes(self.attack.restarts * (forward + 1), self.attack.restarts * backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> PixelsJudged:
        check_input(model, images)
        worst = self._restart(model, images, labels, ids, 0)
        for restart in range(1, self.attack.restarts):
            found = self._restart(model, images, labels, ids, restart)
            worse = found.areas[:, 0].sum(1) < worst.areas[:, 0].sum(1)
            worst = PixelsJudged(*(_where(worse, new, old) for new, old in zip(found, worst)))
        return worst

    def _restart(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> PixelsJudged:
        found = self.attack.perturb(model, images, labels, ids.cpu(), restart)
        return _judged(finite_logits(model, found), found, labels, self.attack.threat.norm.size(found - images))


def _where(flags: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(flags.view(-1, *[1] * (new.ndim - 1)).to(new.device), new, old)


@dataclass(frozen=True)
class PixelMeasure:
    """Areas of classes, summed over pictures and divided then.

    Attributes:
        class_names: In the order of their labels.
        clean: Judge of pictures as they are.
    """

    class_names: tuple[str, ...]
    clean: Judge = PixelsAsGiven()

    metrics = ("miou", "pixel_accuracy", "mean_accuracy")
    checked = 8
    attacks = PIXEL_ATTACKS
    presets = PIXEL_PRESETS

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def under(self, attack: SampleAttack) -> Judge:
        assert isinstance(attack, Attack)
        return PixelsUnderAttack(attack)

    def _areas(self, pictures: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        areas = torch.zeros(3, self.num_classes, dtype=torch.int64)
        for picture in pictures:
            rows = torch.tensor(picture, dtype=torch.int64).view(-1, 4)
            areas[:, rows[:, 0]] += rows[:, 1:].T
        return areas

    def count(self, flags: Flags) -> dict[str, Any]:
        return {"n": len(flags.ids), **metrics_of(self._areas(flags.columns["areas"]))}

    def of_samples(self, flags: Flags) -> list[float]:
        sums = [self._areas([picture]).sum(dim=1).tolist() for picture in flags.columns["areas"]]
        return [round(right / max(labelled, 1), 6) for right, _, labelled in sums]

    def summarise(self, by_corruption: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
        found = corruption_summary(by_corruption, False)
        return {"mean_miou" if key == "mean_accuracy" else key: found[key] for key in found if key != "mean_error"}

    def check(self, model: nn.Module, batches: Sequence[Batch], threat: ThreatModel | None, seed: int) -> list[Finding]:
        found: list[Finding] = []
        for images, labels, _ in batches:  # of different sizes
            found += check_outputs(model, images)
            found += [] if threat is None else check_gradients(model, images, labels, len(images), pixel_cross_entropy)
        return list({finding.check: finding for finding in found}.values())

    def doubt(self, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
        found, metric = [], self.metrics[0]
        attacked = [row for row in rows if "eps" in row]
        for row, other in ((a, b) for a in attacked for b in attacked if a["norm"] == b["norm"]):
            told = f"{row['name']} leaves {row[metric]:.1f} % mIoU, {other['name']} {other[metric]:.1f} %"
            harder = row["family"] == other["family"] and row["eps"] > other["eps"]
            if harder and row[metric] > other[metric] + POINTS:
                found.append(Finding("accuracy rises with eps", f"{told}: a larger ball holds the smaller one{FOUND}."))
            stronger = row["family"] in ("PGD", "SegPGD") and other["family"] == "FGSM" and row["eps"] == other["eps"]
            if stronger and row[metric] > other[metric] + POINTS:
                found.append(Finding("steps are weaker than one", f"{told}: gradients may be masked{FOUND}."))
        return found

    def broken(self, clean: Flags, attacked: Flags) -> Tensor:
        before, after = (torch.tensor(self.of_samples(flags)) for flags in (clean, attacked))
        order = (after - before).argsort()
        return clean.ids[order[: int((after < before).sum())]]

    def gallery(self, model: Any, batch: Batch, condition: Condition, label: str) -> Figure:
        images, labels, ids = batch
        found = condition.judge(model, images, labels, ids).images
        size = (images.shape[-2], images.shape[-1])
        with torch.no_grad():
            clean, attacked = (list(classes_of(model(x), size)) for x in (images, found))
        columns = {"picture": list(images), "labels": list(labels), "clean": clean}
        columns |= {f"{condition.name}, picture": list(found), condition.name: attacked}
        return draw_segmented(label, columns, self.class_names)
