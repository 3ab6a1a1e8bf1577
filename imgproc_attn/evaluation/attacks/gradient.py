"""Attacks that follow the gradient with steps of a set length: FGSM, PGD, MI-FGSM."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from ...utils.checks import check_flag, check_number
from ..losses import cross_entropy, targeted_cross_entropy
from .base import Attack, Objective, Passes, check_at_least, gradient_of


class _FollowsGradient(Attack):
    """What these attacks maximize; subclasses may have something else."""

    def objective_at(self, step: int) -> Objective:
        """Of the step of that number, from 0."""
        return targeted_cross_entropy if self.threat.targeted else cross_entropy


@dataclass(frozen=True)
class FGSM(_FollowsGradient):
    """Fast gradient sign method (arXiv 1412.6572): one step of length eps where the loss rises fastest; no random numbers.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
    """

    @property
    def passes_a_restart(self) -> Passes:
        return Passes(1, 1)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        gradient = gradient_of(self.objective_at(0), model, images, labels)[1]
        found = self.threat.project(images + self.eps * self.threat.steepest(gradient), images)
        return self.threat.rounded(found, images)


@dataclass(frozen=True)
class _Stepwise(_FollowsGradient):
    """Settings of attacks in steps."""

    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    start_at_random: bool = True
    seed: int = 0

    @property
    def passes_a_restart(self) -> Passes:
        return Passes(self.steps, self.steps)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, steps=1)
        check_flag(f"{type(self).__name__}: start_at_random", self.start_at_random)
        if self.step_size is not None:
            check_number(f"{type(self).__name__}: step_size", self.step_size)
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"{type(self).__name__}: step_size is {self.step_size}, but must be positive and finite; or None.")
        if self.restarts > 1 and not self.start_at_random:
            raise ValueError(
                f"{type(self).__name__}: restarts is {self.restarts}, but all would start at the image and end alike; leave it "
                "1, or set start_at_random."
            )

    def _start(self, images: Tensor, ids: Tensor, restart: int) -> Tensor:
        """Where a restart begins, in float32 at least: steps that a type of 16 bits would lose add up."""
        if self.start_at_random:
            return self.random_start(images, ids, (self.seed, restart))
        return at_least_float32(images).clone()


@dataclass(frozen=True)
class PGD(_Stepwise):
    """Projected gradient descent (arXiv 1706.06083): steps from random points of the ball, projected back.

    The worst point of all restarts counts: a sample is left alone as soon as it is fooled, wherever on its way that is. (As
    published, the last point of a restart counts, which can only find less; `perturb` is that.)

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps a restart.
        step_size: Length of a step. Default ``2.5 eps / steps``, which lets a point cross the ball.
        restarts: Starting points a sample.
        start_at_random: Else the image is where it starts.
        seed: Of the starting points, which depend on it, the restart and the sample's id alone.
    """

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        return self.climb(model, self._start(images, ids, restart), images, labels)

    def climb(self, model: nn.Module, start: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """What all steps lead to from given points of the balls."""
        for step in range(self.steps):
            start, _ = self._step(step, model, start, images, labels)
        return self.threat.rounded(start, images)

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        adversarial, left = self._start(images, ids, restart), torch.arange(len(images), device=images.device)
        for step in range(self.steps):
            moved, logits = self._step(step, model, adversarial[left], images[left], labels[left])
            stays = ~self.threat.succeeded(logits.argmax(dim=1), labels[left])  # judged before the step, at no cost
            left = left[stays]
            adversarial[left] = moved[stays]
            if len(left) == 0:
                break
        return self.threat.rounded(adversarial, images)

    def _step(self, step: int, model: nn.Module, points: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The next points, and the logits of these."""
        length = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        seen = self.threat.rounded(points, images)
        _, gradient, logits = gradient_of(self.objective_at(step), model, seen, labels)
        return self.threat.project(points + length * self.threat.steepest(gradient), images), logits


@dataclass(frozen=True)
class MIFGSM(_Stepwise):
    """Momentum iterative FGSM (arXiv 1710.06081): steps along an average of gradients, each scaled to an L1 norm of 1.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps.
        step_size: Length of a step. Default ``eps / steps``, as published.
        restarts: Starting points a sample.
        start_at_random: Else the image is where it starts, as published.
        seed: Of the starting points.
        decay: What of the average each step keeps.
    """

    steps: int = 10
    start_at_random: bool = False
    decay: float = 1.0

    def _check(self) -> None:
        super()._check()
        if not math.isfinite(check_number("MIFGSM: decay", self.decay)):
            raise ValueError(f"MIFGSM: decay is {self.decay}, but must be finite; 1.0 is the published one.")

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        adversarial = self._start(images, ids, restart)
        length = self.eps / self.steps if self.step_size is None else self.step_size
        average = torch.zeros_like(adversarial)
        for step in range(self.steps):
            seen = self.threat.rounded(adversarial, images)
            gradient = gradient_of(self.objective_at(step), model, seen, labels)[1]
            scale = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            average = self.decay * average + gradient / scale[:, None, None, None]
            adversarial = self.threat.project(adversarial + length * self.threat.steepest(average), images)
        return self.threat.rounded(adversarial, images)
