"""Auto-PGD (arXiv 2003.01690, algorithm 1): PGD with momentum that halves its step where the objective stops rising."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..objectives import (
    cross_entropy,
    difference_of_logits_ratio,
    others,
    targeted_cross_entropy,
    targeted_difference_of_logits_ratio,
)
from .base import Attack, Objective, Passes, check_at_least, gradient_of


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is judged: at 22 % of all, then at intervals that shrink by 3 % down to 6 %."""
    interval, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    marks = [interval]
    while marks[-1] + (interval := max(interval - shrink, least)) <= steps:
        marks.append(marks[-1] + interval)
    return marks


@dataclass(frozen=True)
class _APGD(Attack):
    """The algorithm; the objective is its subclasses'.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a restart.
        restarts: Random starting points a sample.
        seed: Of the starting points, which depend on it, the restart and the sample's id alone.
    """

    steps: int = 100
    restarts: int = 1
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
    def objective(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Objective:
        """What a restart maximises."""

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        objective = self.objective(model, images, labels, restart)
        start = self.random_start(images, ids, (self.seed, restart))
        return self.maximise(objective, model, images, labels, start)

    def maximise(self, objective: Objective, model: nn.Module, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """The best points found from ``start``; a fooled one is kept over any that is not."""
        threat = self.threat
        here = before = best = start
        value, gradient, logits = gradient_of(objective, model, here, labels)
        best_value, best_gradient = value, gradient
        fooled = threat.succeeded(logits.argmax(1), labels)
        found = here.clone()
        length = torch.full_like(value, 2 * threat.eps)
        rises = torch.zeros_like(value)
        judged_length, judged_best, judged_at = length.clone(), best_value.clone(), 0
        marks = set(checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            ahead = threat.project(here + length[:, None, None, None] * threat.steepest(gradient), images)
            share = self.momentum if step > 1 else 1.0
            moved = threat.project(here + share * (ahead - here) + (1 - share) * (here - before), images)
            before, here, old = here, moved, value
            value, gradient, logits = gradient_of(objective, model, here, labels)
            newly = threat.succeeded(logits.argmax(1), labels)
            found = torch.where(_each(newly), here, found)
            fooled = fooled | newly
            rises = rises + (value > old)
            better = value > best_value
            best, best_gradient = torch.where(_each(better), here, best), torch.where(_each(better), gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            if step in marks:
                rose_little = rises < self.least_rises * (step - judged_at)
                stuck = (length == judged_length) & (best_value <= judged_best)
                halve = rose_little | stuck
                judged_length, judged_best, judged_at, rises = length.clone(), best_value.clone(), step, torch.zeros_like(rises)
                length = torch.where(halve, length / 2, length)
                here, gradient = torch.where(_each(halve), best, here), torch.where(_each(halve), best_gradient, gradient)
                before = torch.where(_each(halve), best, before)
                value = torch.where(halve, best_value, value)
        return torch.where(_each(fooled), found, best)


def _each(flags: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1]``."""
    return flags[:, None, None, None]


@dataclass(frozen=True)
class APGDCE(_APGD):
    """Auto-PGD on the cross-entropy (APGD-CE)."""

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Objective:
        return targeted_cross_entropy if self.threat.targeted else cross_entropy


@dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (APGD-DLR); needs 3 classes and labels to avoid."""

    def _check(self) -> None:
        super()._check()
        _refuse_targets(self)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Objective:
        return difference_of_logits_ratio


@dataclass(frozen=True)
class TargetedAPGD(_APGD):
    """Auto-PGD on the targeted difference of logits ratio (APGD-T); needs 4 classes and labels to avoid.

    Each restart aims at the class that is next likeliest for the clean image.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a restart.
        restarts: So many classes are aimed at, the last again if there are fewer.
        seed: Of the starting points.
    """

    restarts: int = 9

    @property
    def passes_a_restart(self) -> Passes:
        return Passes(self.steps + 2, self.steps + 1)

    def _check(self) -> None:
        super()._check()
        _refuse_targets(self)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor, restart: int) -> Objective:
        with torch.no_grad():
            logits = model(images)
        likeliest = others(logits, labels).argsort(dim=1, descending=True)
        targets = likeliest[:, min(restart, logits.shape[1] - 2)]
        return lambda logits, labels: targeted_difference_of_logits_ratio(logits, labels, targets)


def _refuse_targets(attack: Attack) -> None:
    if attack.threat.targeted:
        raise ValueError(
            f"{type(attack).__name__} chooses by itself which classes to reach; give a threat model without targets."
        )
