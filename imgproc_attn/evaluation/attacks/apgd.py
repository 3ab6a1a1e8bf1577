"""Auto-PGD (arXiv 2003.01690, algorithm 1): PGD with momentum that halves its step where the objective stops rising."""

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from ..losses import (
    cross_entropy,
    difference_of_logits_ratio,
    others,
    targeted_cross_entropy,
    targeted_difference_of_logits_ratio,
)
from ..threat import ThreatModel
from .base import Attack, Passes, check_at_least, gradient_of


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is judged: at 22 % of all, then at intervals that shrink by 3 % down to 6 %."""
    interval, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    marks = [interval]
    while marks[-1] + (interval := max(interval - shrink, least)) <= steps:
        marks.append(marks[-1] + interval)
    return marks


@dataclass
class _Climb:
    """Where the samples of a restart are; tensors ``[B, …]``."""

    images: Tensor
    labels: Tensor
    aims: Tensor
    here: Tensor
    before: Tensor
    best: Tensor
    gradient: Tensor
    best_gradient: Tensor
    length: Tensor
    judged_length: Tensor
    value: Tensor
    best_value: Tensor
    judged_best: Tensor
    rises: Tensor

    @classmethod
    def begin(cls, images: Tensor, labels: Tensor, aims: Tensor, start: Tensor, length: float) -> "_Climb":
        """At its start, of which nothing is known yet."""
        lengths = torch.full_like(start[:, 0, 0, 0], length)
        unknown, none = torch.full_like(lengths, -torch.inf), torch.zeros_like(start)
        points = (start, start, start, none, none)
        return cls(images, labels, aims, *points, lengths, lengths, unknown, unknown, unknown, torch.zeros_like(lengths))

    def only(self, kept: Tensor) -> "_Climb":
        """Some of the samples."""
        indices = kept.nonzero()[:, 0]  # a mask would be waited for on a GPU, tensor by tensor
        return _Climb(*(getattr(self, field.name)[indices] for field in fields(self)))

    def move(self, threat: ThreatModel, momentum: float) -> None:
        """A step along the gradient, and ``1 - momentum`` of the last one."""
        ahead = threat.project(self.here + _each(self.length) * threat.steepest(self.gradient), self.images)
        moved = self.here + momentum * (ahead - self.here) + (1 - momentum) * (self.here - self.before)
        self.before, self.here = self.here, threat.project(moved, self.images)

    def arrive(self, value: Tensor, gradient: Tensor) -> None:
        """Take note of the objective where the samples are now."""
        better = value > self.best_value
        self.rises = self.rises + (value > self.value)
        self.value, self.gradient = value, gradient
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(_each(better), self.here, self.best)
        self.best_gradient = torch.where(_each(better), gradient, self.best_gradient)

    def judge(self, least_rises: float) -> None:
        """Halve the steps of those that do not get on, and put them where they were best."""
        halve = (self.rises < least_rises) | ((self.length == self.judged_length) & (self.best_value <= self.judged_best))
        self.judged_length, self.judged_best, self.rises = self.length, self.best_value, torch.zeros_like(self.rises)
        self.length = torch.where(halve, self.length / 2, self.length)
        self.here = torch.where(_each(halve), self.best, self.here)
        self.gradient = torch.where(_each(halve), self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best_value, self.value)


def _each(values: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class _APGD(Attack):
    """The algorithm; the objective is its subclasses'. A sample is left alone as soon as it is fooled.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a restart.
        seed: Of the starting points, which depend on it, the restart and the sample's id alone.
    """

    steps: int = 100
    seed: int = 0

    momentum = 0.75  # alpha of the paper
    least_rises = 0.75  # rho: the share of steps since the last checkpoint that must have raised the objective

    @property
    def passes_a_restart(self) -> Passes:
        return Passes(self.steps + 1, self.steps + 1)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, steps=1)

    @abstractmethod
    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """``[B]``, what is maximized."""

    def aims(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Tensor:
        """``[B]`` classes that a restart aims at; labels for those that aim at none of their own."""
        return labels

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        return self._climb(model, images, labels, ids, restart, leave=False)

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        return self._climb(model, images, labels, ids, restart, leave=True)

    def _climb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int, leave: bool) -> Tensor:
        """The best points of a restart; a fooled one is kept over any that is not. ``leave`` those that are."""
        threat, aims = self.threat, self.aims(model, images, labels, restart)
        found = self.random_start(images, ids, (self.seed, restart))
        climb = _Climb.begin(images, labels, aims, found.clone(), 2 * threat.eps)
        fooled, left = torch.zeros_like(labels, dtype=torch.bool), torch.arange(len(labels), device=labels.device)
        marks, judged_at = {0, *checkpoints(self.steps)}, 0
        for step in range(self.steps + 1):
            if step > 0:
                climb.move(threat, self.momentum if step > 1 else 1.0)
            seen = threat.rounded(climb.here, climb.images)
            value, gradient, logits = gradient_of(partial(self.objective, climb.aims), model, seen, climb.labels)
            newly = threat.succeeded(logits.argmax(1), climb.labels)
            found[left[newly]], fooled[left[newly]] = climb.here[newly], True
            climb.arrive(value, gradient)
            if step in marks:
                climb.judge(self.least_rises * (step - judged_at))
                judged_at = step
            if leave and newly.any():
                climb, left = climb.only(~newly), left[~newly]
                if len(left) == 0:
                    break
        never = ~fooled[left]
        found[left[never]] = climb.best[never]
        return threat.rounded(found, images)


@dataclass(frozen=True)
class APGDCE(_APGD):
    """Auto-PGD on the cross-entropy (APGD-CE).

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a restart.
        seed: Of the starting points, which depend on it, the restart and the sample's id alone.
        restarts: Random starting points a sample.
    """

    restarts: int = 1

    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return (targeted_cross_entropy if self.threat.targeted else cross_entropy)(logits, labels)


@dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (APGD-DLR); needs 3 classes and labels to avoid. Arguments as `APGDCE`."""

    restarts: int = 1

    def _check(self) -> None:
        super()._check()
        _refuse_targets(self)

    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return difference_of_logits_ratio(logits, labels)


@dataclass(frozen=True)
class TargetedAPGD(_APGD):
    """Auto-PGD on the targeted difference of logits ratio (APGD-T); needs 4 classes and labels to avoid.

    Each restart aims at the class that is next likeliest for the clean image.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a class.
        seed: Of the starting points.
        targets: So many classes are aimed at, the last again if there are fewer.
    """

    targets: int = 9

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """One a class."""
        return self.targets

    @property
    def passes_a_restart(self) -> Passes:
        return Passes(self.steps + 2, self.steps + 1)

    def _check(self) -> None:
        check_at_least(self, targets=1)
        super()._check()
        _refuse_targets(self)

    def aims(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Tensor:
        with torch.no_grad():
            logits = at_least_float32(model(images))
        likeliest = others(logits, labels).argsort(dim=1, descending=True)
        return likeliest[:, min(restart, logits.shape[1] - 2)]

    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return targeted_difference_of_logits_ratio(logits, labels, aims)


def _refuse_targets(attack: Attack) -> None:
    if attack.threat.targeted:
        raise ValueError(
            f"{type(attack).__name__} chooses by itself which classes to reach; give a threat model without targets."
        )
