"""Conditions: under what circumstances a model is asked, and when its answer counts as right.

A condition is a name, the samples it is asked about, and a judge. A judge gets batches and says of each sample whether the
answer counts as right; every number of an evaluation is a count of these flags.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..utils.serialization import describe
from .attacks import Attack, AttackResult, Passes
from .attacks.base import checked_logits, predict
from .contract import check_batch
from .normalization import NormalizedModel
from .per_sample_rng import mix
from .samples import Prepared, Samples
from .threat import ThreatModel

CLEAN = "clean"  # the condition of images as they are


class Verdict(Protocol):
    """What came of a batch."""

    @property
    def images(self) -> Tensor:
        """``[B, C, H, W]`` that were judged: those given, or adversarial ones."""
        ...

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """What is kept: by name, a value a sample, as JSON takes it."""
        ...


class Judged(NamedTuple):
    """What came of a batch of images with a label each.

    Attributes:
        labels: ``[B]``.
        correct: ``[B]`` bool.
        images: ``[B, C, H, W]`` that were judged: those given, or adversarial ones.
        predictions: ``[B]`` classes; None where an attack decides by itself, for a second pass might disagree with it.
        scores: ``[B]`` what else the judge has to say: under attack, the distance of the images from those given, in the norm
            of the threat model.
        by: ``[B]``, of several attacks the number of that which fooled the sample, -1 for none.
    """

    labels: Tensor
    correct: Tensor
    images: Tensor
    predictions: Tensor | None
    scores: Tensor
    by: Tensor | None = None

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """Labels, flags, scores and, where there are some, predictions and attacks."""
        found = {"labels": self.labels, "correct": self.correct.int(), "scores": self.scores, "predictions": self.predictions}
        return {name: values.tolist() for name, values in {**found, "by": self.by}.items() if values is not None}


class Judge(Protocol):
    """Says what a model makes of a batch."""

    @property
    def passes(self) -> Passes:
        """What that costs a sample at most."""
        ...

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> Verdict:
        """``model`` maps images in [0, 1] to logits; ``ids`` are numbers of the samples in their data set."""
        ...


class SampleAttack(Protocol):
    """An attack under one threat model: `Attack`, or several as `WorstOf`."""

    @property
    def threat(self) -> ThreatModel:
        """What it may do."""
        ...

    @property
    def passes(self) -> Passes:
        """What it costs a sample at most."""
        ...

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """As `Attack`."""
        ...


@dataclass(frozen=True)
class AsGiven:
    """The images as they are: right where the label is predicted. The score is the largest probability."""

    @property
    def passes(self) -> Passes:
        return Passes(1, 0)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> Judged:
        images = check_batch(model, images, labels)
        logits = checked_logits(model, images, labels)
        predictions = logits.argmax(dim=1)
        return Judged(labels, predictions == labels, images, predictions, logits.softmax(dim=1).amax(dim=1))


@dataclass(frozen=True)
class UnderAttack:
    """Right where the label is predicted for the image, and the attack does not find what it looks for.

    A threat model with targets gets, for each sample, one class that is not its label, drawn by the sample's number.

    Args:
        attack: On images in [0, 1].
    """

    attack: SampleAttack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(forward + self.attack.threat.targeted, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> Judged:
        wanted, correct = labels, torch.ones_like(labels, dtype=torch.bool)
        if self.attack.threat.targeted:
            images = check_batch(model, images, labels)
            logits = checked_logits(model, images, labels)
            wanted, correct = targets_of(labels, ids, logits.shape[1]), logits.argmax(dim=1) == labels
        adversarial, success, by = self.attack(model, images, wanted, ids)
        distances = self.attack.threat.distance(adversarial, images)
        return Judged(labels, correct & ~success, adversarial, None, distances, by)


def targets_of(labels: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """``[B]`` classes that are not the labels, by the samples' numbers."""
    shifts = torch.tensor([1 + mix(num_classes, int(i)) % (num_classes - 1) for i in ids.tolist()], dtype=labels.dtype)
    return (labels + shifts.to(labels.device)) % num_classes


@dataclass(frozen=True)
class AsPublished:
    """The convention of the attention papers' code (papers that attack DeiT by cleverhans), for comparison with their numbers.

    The attack works on normalized tensors, without a range, against the model's own predictions; each image is attacked once,
    broken already or not, and the last point is what counts: right where the label is predicted for it.

    Args:
        attack: Under a threat model of `ThreatModel.normalized`.
    """

    attack: Attack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes_a_restart
        return Passes(forward + 2, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> Judged:
        if not isinstance(model, NormalizedModel):
            raise ValueError("An attack on normalized tensors needs a NormalizedModel, which says how they are normalized.")
        images = check_batch(model, images, labels)
        inner, normalized = model.model, model.normalize(images)
        own = predict(inner, normalized, labels)
        adversarial = self.attack.perturb(inner, normalized, own, ids.cpu())
        predictions = predict(inner, adversarial, labels)
        distances = self.attack.threat.distance(adversarial, normalized)
        return Judged(labels, predictions == labels, adversarial, predictions, distances)


def judge_of(attack: SampleAttack) -> UnderAttack | AsPublished:
    """By the space of the attack's threat model: `UnderAttack` or, without a range, `AsPublished`.

    Raises:
        ValueError: Several attacks as one, or targets, on normalized tensors: the papers' code has neither.
    """
    if attack.threat.bounds is not None:
        return UnderAttack(attack)
    if not isinstance(attack, Attack) or attack.threat.targeted or attack.restarts > 1:
        raise ValueError(
            "On normalized tensors, as the papers do it, only single attacks of one start and without targets exist; attack "
            "images in [0, 1]."
        )
    return AsPublished(attack)


@dataclass(frozen=True)
class Condition:
    """What a model is judged on.

    Attributes:
        name: Unique in an evaluation; stands in tables.
        samples: Asked about.
        judge: Says what counts.
        preprocessing: Of the images, if it is not the evaluation's.
        family: What it is one strength of, for curves and heat maps.
        strength: Of that: an eps in gray levels (L-infinity) or as it is (L2), a severity.
    """

    name: str
    samples: Samples
    judge: Judge = AsGiven()
    preprocessing: Prepared | None = None
    family: str | None = None
    strength: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Of judge and corruption, as JSON takes them."""
        return {"judge": describe(self.judge), "corruption": describe(self.samples.corruption)}
