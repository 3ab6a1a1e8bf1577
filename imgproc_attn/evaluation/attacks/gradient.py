"""Attacks that follow the gradient with steps of fixed length: FGSM, PGD, MI-FGSM."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from ...utils.checks import check_flag, check_number
from ..losses import cross_entropy, targeted_cross_entropy
from .base import Attack, Objective, Passes, check_at_least, gradient_of

__all__ = ["FGSM", "MIFGSM", "PGD"]


class _FollowsGradient(Attack):
    """Attack that maximizes the cross-entropy; subclasses may override the objective."""

    def objective_at(self, step: int) -> Objective:
        """Return the objective of a step, counted from 0."""
        return targeted_cross_entropy if self.threat.targeted else cross_entropy


@dataclass(frozen=True)
class FGSM(_FollowsGradient):
    """Fast gradient sign method (arXiv 1412.6572): one step of length eps in the direction of steepest ascent.

    It draws no random numbers.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
        >>> (FGSM(8 / 255)(model, images, labels).adversarial - images).abs().max() <= 8 / 255 + 1e-6
        tensor(True)
    """

    @property
    def passes_per_restart(self) -> Passes:
        return Passes(1, 1)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        gradient = gradient_of(self.objective_at(0), model, images, labels)[1]
        points = self.threat.project(images + self.eps * self.threat.steepest(gradient), images)
        return self.threat.rounded(points, images)


@dataclass(frozen=True)
class _Stepwise(_FollowsGradient):
    """Base class of attacks in several steps, with their settings."""

    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    start_at_random: bool = True
    seed: int = 0

    @property
    def passes_per_restart(self) -> Passes:
        return Passes(self.steps, self.steps)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, steps=1)
        check_flag(f"{type(self).__name__}: start_at_random", self.start_at_random)
        if self.step_size is not None:
            check_number(f"{type(self).__name__}: step_size", self.step_size)
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(
                f"{type(self).__name__}: step_size must be positive and finite, got {self.step_size}. Give None for the "
                "default."
            )
        if self.restarts > 1 and not self.start_at_random:
            raise ValueError(
                f"{type(self).__name__}: restarts must be 1 without random starts, got {self.restarts}, which would all be "
                "equal. Give restarts=1, or start_at_random=True."
            )

    def _start(self, images: Tensor, ids: Tensor, restart: int) -> Tensor:
        """Return the starting points of a restart, in float32 or higher precision.

        A 16-bit type would lose small steps.
        """
        if self.start_at_random:
            return self.random_start(images, ids, (self.seed, restart))
        return at_least_float32(images).clone()


@dataclass(frozen=True)
class PGD(_Stepwise):
    """Projected gradient descent (arXiv 1706.06083): steps from random points of the ball, projected back into it.

    A sample counts as fooled if any point on the way of any restart fools the model, and is then not attacked further. The
    published attack counts only the last point of each restart, which is weaker. `perturb` returns that point.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps per restart.
        step_size: Length of a step, in the units of eps. Default: ``2.5 eps / steps``, which lets a point cross the ball.
        restarts: Starting points per sample.
        start_at_random: Start at a random point of the ball; False for the image itself.
        seed: Seed of the starting points. They depend only on it, the restart and the sample's id.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> PGD(8 / 255, steps=20)(model, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])).success.shape
        torch.Size([4])
    """

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        return self.climb(model, self._start(images, ids, restart), images, labels)

    def climb(self, model: nn.Module, start: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the final points ``[B, C, H, W]`` after all steps from the given points of the balls."""
        for step in range(self.steps):
            start, _ = self._step(step, model, start, images, labels)
        return self.threat.rounded(start, images)

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        adversarial, left = self._start(images, ids, restart), torch.arange(len(images), device=images.device)
        for step in range(self.steps):
            moved, logits = self._step(step, model, adversarial[left], images[left], labels[left])
            # Judging the points before the step needs no extra pass.
            stays = ~self.threat.succeeded(logits.argmax(dim=1), labels[left])
            left = left[stays]
            adversarial[left] = moved[stays]
            if len(left) == 0:
                break
        return self.threat.rounded(adversarial, images)

    def _step(self, step: int, model: nn.Module, points: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points, and the logits of the given points."""
        length = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        seen = self.threat.rounded(points, images)
        _, gradient, logits = gradient_of(self.objective_at(step), model, seen, labels)
        return self.threat.project(points + length * self.threat.steepest(gradient), images), logits


@dataclass(frozen=True)
class MIFGSM(_Stepwise):
    """Momentum iterative FGSM (arXiv 1710.06081): steps along a running sum of gradients, each scaled to an L1 norm of 1.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Gradient steps per restart.
        step_size: Length of a step, in the units of eps. Default: ``eps / steps``, as published.
        restarts: Starting points per sample.
        start_at_random: Start at a random point of the ball. Default: at the image itself, as published.
        seed: Seed of the starting points.
        decay: Factor of the sum of earlier gradients in each step.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> MIFGSM(8 / 255, steps=5)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    steps: int = 10
    start_at_random: bool = False
    decay: float = 1.0

    def _check(self) -> None:
        super()._check()
        if not math.isfinite(check_number("MIFGSM: decay", self.decay)):
            raise ValueError(f"MIFGSM: decay must be finite, got {self.decay}. The published value is 1.0.")

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
