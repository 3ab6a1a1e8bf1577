"""Auto-PGD (arXiv 2003.01690, algorithm 1): PGD with momentum that halves its step size where the objective stops rising."""

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

__all__ = ["APGDCE", "APGDDLR", "TargetedAPGD", "checkpoints"]


def checkpoints(steps: int) -> list[int]:
    """Return the numbers of the steps after which the step size is judged.

    The first one is at 22 % of all steps. The intervals then shrink by 3 % of all steps, down to 6 %.
    """
    interval, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    marks = [interval]
    while marks[-1] + (interval := max(interval - shrink, least)) <= steps:
        marks.append(marks[-1] + interval)
    return marks


@dataclass
class _Climb:
    """State of the samples of one restart; all tensors are ``[B, …]``."""

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
        """Return the state at the starting points, before any evaluation of the objective."""
        lengths = torch.full_like(start[:, 0, 0, 0], length)
        unknown, none = torch.full_like(lengths, -torch.inf), torch.zeros_like(start)
        points = (start, start, start, none, none)
        return cls(images, labels, aims, *points, lengths, lengths, unknown, unknown, unknown, torch.zeros_like(lengths))

    def only(self, kept: Tensor) -> "_Climb":
        """Return the state of the samples that ``kept`` ``[B]`` bool selects."""
        indices = kept.nonzero()[:, 0]  # Indexing by a mask would synchronize a GPU once per tensor.
        return _Climb(*(getattr(self, field.name)[indices] for field in fields(self)))

    def move(self, threat: ThreatModel, momentum: float) -> None:
        """Step along the gradient, with ``1 - momentum`` of the last step added."""
        ahead = threat.project(self.here + _each(self.length) * threat.steepest(self.gradient), self.images)
        moved = self.here + momentum * (ahead - self.here) + (1 - momentum) * (self.here - self.before)
        self.before, self.here = self.here, threat.project(moved, self.images)

    def arrive(self, value: Tensor, gradient: Tensor) -> None:
        """Store the objective and its gradient at the current points, and update the best points."""
        better = value > self.best_value
        self.rises = self.rises + (value > self.value)
        self.value, self.gradient = value, gradient
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(_each(better), self.here, self.best)
        self.best_gradient = torch.where(_each(better), gradient, self.best_gradient)

    def judge(self, least_rises: float) -> None:
        """Halve the step size of samples that stopped improving and reset them to their best point."""
        halve = (self.rises < least_rises) | ((self.length == self.judged_length) & (self.best_value <= self.judged_best))
        self.judged_length, self.judged_best, self.rises = self.length, self.best_value, torch.zeros_like(self.rises)
        self.length = torch.where(halve, self.length / 2, self.length)
        self.here = torch.where(_each(halve), self.best, self.here)
        self.gradient = torch.where(_each(halve), self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best_value, self.value)


def _each(values: Tensor) -> Tensor:
    """Return ``[B]`` as ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class _APGD(Attack):
    """Base class of the algorithm; subclasses define the objective. A sample is not attacked further once it is fooled.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps per restart.
        seed: Seed of the starting points. They depend only on it, the restart and the sample's id.
    """

    steps: int = 100
    seed: int = 0

    momentum = 0.75  # Called alpha in the paper.
    least_rises = 0.75  # Called rho: share of steps since the last checkpoint that must raise the objective.

    @property
    def passes_per_restart(self) -> Passes:
        return Passes(self.steps + 1, self.steps + 1)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, steps=1)

    @abstractmethod
    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the ``[B]`` values to maximize."""

    def aims(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Tensor:
        """Return the ``[B]`` classes that a restart aims at. Untargeted objectives return the labels."""
        return labels

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        return self._climb(model, images, labels, ids, restart, leave=False)

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        return self._climb(model, images, labels, ids, restart, leave=True)

    def _climb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int, leave: bool) -> Tensor:
        """Return the best points of one restart, fooled ones first. With ``leave``, drop samples once they are fooled."""
        threat, aims = self.threat, self.aims(model, images, labels, restart)
        result = self.random_start(images, ids, (self.seed, restart))
        climb = _Climb.begin(images, labels, aims, result.clone(), 2 * threat.eps)
        fooled, left = torch.zeros_like(labels, dtype=torch.bool), torch.arange(len(labels), device=labels.device)
        marks, judged_at = {0, *checkpoints(self.steps)}, 0
        for step in range(self.steps + 1):
            if step > 0:
                climb.move(threat, self.momentum if step > 1 else 1.0)
            seen = threat.rounded(climb.here, climb.images)
            value, gradient, logits = gradient_of(partial(self.objective, climb.aims), model, seen, climb.labels)
            newly = threat.succeeded(logits.argmax(1), climb.labels)
            result[left[newly]], fooled[left[newly]] = climb.here[newly], True
            climb.arrive(value, gradient)
            if step in marks:
                climb.judge(self.least_rises * (step - judged_at))
                judged_at = step
            if leave and newly.any():
                climb, left = climb.only(~newly), left[~newly]
                if len(left) == 0:
                    break
        never = ~fooled[left]
        result[left[never]] = climb.best[never]
        return threat.rounded(result, images)


@dataclass(frozen=True)
class APGDCE(_APGD):
    """Auto-PGD on the cross-entropy (APGD-CE).

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps per restart.
        seed: Seed of the starting points. They depend only on it, the restart and the sample's id.
        restarts: Random starting points per sample.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> APGDCE(8 / 255, steps=5)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    restarts: int = 1

    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return (targeted_cross_entropy if self.threat.targeted else cross_entropy)(logits, labels)


@dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (APGD-DLR), for untargeted attacks on at least 3 classes.

    The arguments are those of `APGDCE`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
        >>> APGDDLR(8 / 255, steps=5)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    restarts: int = 1

    def _check(self) -> None:
        super()._check()
        _refuse_targets(self)

    def objective(self, aims: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return difference_of_logits_ratio(logits, labels)


@dataclass(frozen=True)
class TargetedAPGD(_APGD):
    """Auto-PGD on the targeted difference of logits ratio (APGD-T), for untargeted threat models and at least 4 classes.

    Each restart aims at the next most likely class of the clean image.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps per class.
        seed: Seed of the starting points.
        targets: Number of classes to aim at. If the model has fewer, the last one is repeated.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).eval()
        >>> TargetedAPGD(8 / 255, steps=5, targets=3)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    targets: int = 9

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """Number of restarts: one per target class."""
        return self.targets

    @property
    def passes_per_restart(self) -> Passes:
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
            f"{type(attack).__name__}: the threat model must be untargeted, got targeted=True. This attack chooses its target "
            "classes itself; give a threat model with targeted=False."
        )
