"""Base classes of attacks, their result type, and the checks that all attacks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from ...utils.checks import check_whole
from ..contract import check_batch, check_classes_of_labels, finite_logits
from ..per_sample_rng import draw_per_sample
from ..threat import ThreatModel

__all__ = [
    "Attack",
    "AttackResult",
    "Objective",
    "Passes",
    "TargetAttack",
    "check_at_least",
    "checked_logits",
    "gradient_by",
    "gradient_of",
    "is_correct",
    "predict",
]

Objective = Callable[[Tensor, Tensor], Tensor]


class AttackResult(NamedTuple):
    """Result of an attack on one batch.

    Attributes:
        adversarial: ``[B, C, H, W]`` images within the threat model around the clean images.
        success: ``[B]`` bool, whether the prediction is what the adversary wants.
        by: ``[B]`` number of the attack in an ensemble that fooled the sample. It is -1 if none did, and for samples that were
            wrong before the attack. None for a single attack.
    """

    adversarial: Tensor
    success: Tensor
    by: Tensor | None = None


class Passes(NamedTuple):
    """Maximum cost of an attack per sample: the numbers of forward and backward passes through the model."""

    forward: int
    backward: int


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the ``[B, classes]`` logits, in float32 or higher precision.

    Raises:
        TypeError: As `finite_logits`.
        FloatingPointError: As `finite_logits`.
        ValueError: As `finite_logits`, or the model has no logit for a label.
    """
    logits = finite_logits(model, images)
    check_classes_of_labels(labels, logits)
    return logits


def predict(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the ``[B]`` predicted classes, with the checks of `checked_logits`."""
    return checked_logits(model, images, labels).argmax(dim=1)


def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return ``[B]`` bool, whether each prediction is the label, with the checks of `checked_logits`."""
    return predict(model, images, labels) == labels


def gradient_of(objective: Objective, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``[B]`` values of an objective, its gradient with respect to the images, and the logits.

    Gradients are enabled inside, also under ``torch.no_grad()``. All results are in float32 or higher precision, also for a
    model in half precision.

    Raises:
        FloatingPointError: A gradient is not finite. Its sign would be 0, so attacks could not move.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = at_least_float32(model(images))
        values = objective(logits, labels)
        gradient = at_least_float32(gradient_by(images, values.sum()))
    if not gradient.isfinite().all():
        count = int((~gradient.isfinite().flatten(1).all(1)).sum())
        raise FloatingPointError(
            f"The gradient must be finite, got other values for {count} of {len(images)} images, though their logits are "
            "finite. Look for roots, norms or logarithms at 0 and for torch.where around them, or attack with Square."
        )
    return values.detach(), gradient, logits.detach()


def gradient_by(images: Tensor, value: Tensor) -> Tensor:
    """Return the gradient of a scalar with respect to the images; 0 if no gradient reaches them (after integer casts)."""
    if not value.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(value, images, allow_unused=True, materialize_grads=True)[0]


@dataclass(frozen=True)
class Attack(ABC):
    """Base class of attacks. An instance holds the settings; call it to attack a batch.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
    """

    threat: Any  # __post_init__ turns a number into a ThreatModel.

    restarts = 1  # Attacks with random starts replace it by a field.

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "threat", ThreatModel.of(self.threat))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None
        self._check()

    def _check(self) -> None:
        """Check the settings."""
        check_at_least(self, restarts=1)
        check_whole(f"{type(self).__name__}: seed", getattr(self, "seed", 0))

    @property
    def eps(self) -> float:
        """Radius of the ball, in the units of the threat model."""
        return self.threat.eps

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack the samples that are not fooled yet, one restart after the other.

        Args:
            model: Maps images to logits, in evaluation mode.
            images: ``[B, C, H, W]``, in the threat model's range. The adversarial images have their dtype and are in the ball,
                also in half precision (see `ThreatModel.rounded`).
            labels: ``[B]`` class indices.
            sample_ids: ``[B]`` numbers of the images in their data set, which random draws depend on. Default: 0 to B - 1.

        Raises:
            TypeError: Images, labels or the model's output are not tensors.
            ValueError: As `check_batch`, or the settings do not fit the model.
            FloatingPointError: Logits or gradients are not finite.
        """
        threat = self.threat
        images = check_batch(model, images, labels, threat.bounds)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids.cpu()
        adversarial = images.clone()
        success = threat.succeeded(predict(model, images, labels), labels)
        for restart in range(self.restarts):
            left = (~success).nonzero()[:, 0]
            if len(left) == 0:
                break
            points = self.search(model, images[left], labels[left], ids[left.cpu()], restart)
            adversarial[left] = points
            success[left] = threat.succeeded(predict(model, points, labels[left]), labels[left])
        return AttackResult(adversarial, success)

    @abstractmethod
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        """Return the final points ``[B, C, H, W]`` of one restart, for all images."""

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        """Return the worst points of one restart. Default: the final points of `perturb`."""
        return self.perturb(model, images, labels, ids, restart)

    @property
    @abstractmethod
    def passes_per_restart(self) -> Passes:
        """Maximum number of passes of `search`."""

    @property
    def passes(self) -> Passes:
        """Maximum number of passes of one call, which robust samples need."""
        forward, backward = self.passes_per_restart
        return Passes(1 + self.restarts * (forward + 1), self.restarts * backward)

    def random_start(self, images: Tensor, ids: Tensor, key: tuple[int, ...]) -> Tensor:
        """Return random points of the balls, drawn per sample id and ``key``, in float32 or higher precision."""
        threat = self.threat
        inside = draw_per_sample(at_least_float32(images), ids, key, lambda shape, g: threat.norm.random(shape, g))
        return threat.project(images + threat.eps * inside, images)


class TargetAttack(Attack):
    """Base class of attacks on any kind of output. They lower a quality that is measured per sample.

    Subclasses define the measure (`quality`) and the objective whose gradient is followed (``objective_at``). List them before
    the attack that gives the steps: ``class PixelPGD(PixelAttack, PGD)``.
    """

    @abstractmethod
    def quality(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return ``[B]`` numbers that are smaller for worse outputs."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack images. An attack on a sample succeeds if its quality is lower than before.

        Args:
            model: Maps images to outputs, in evaluation mode.
            images: ``[B, C, H, W]`` in the range of the threat model.
            labels: ``[B, …]`` targets.
            sample_ids: As in `Attack`.
        """
        images = check_batch(model, images, bounds=self.threat.bounds)
        before = self.quality(model, images, labels)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids.cpu()
        adversarial = self.worst(model, images, labels, ids)
        return AttackResult(adversarial, self.quality(model, adversarial, labels) < before)

    def worst(self, model: nn.Module, images: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        """Return, per sample, the final point of the restart with the lowest quality."""
        worst = self.perturb(model, images, targets, ids, 0)
        if self.restarts == 1:
            return worst
        least = self.quality(model, worst, targets)
        for restart in range(1, self.restarts):
            points = self.perturb(model, images, targets, ids, restart)
            quality = self.quality(model, points, targets)
            worst = torch.where((quality < least)[:, None, None, None], points, worst)
            least = torch.minimum(quality, least)
        return worst

    @property
    def passes(self) -> Passes:
        """Maximum number of passes of `worst`."""
        forward, backward = self.passes_per_restart
        return Passes(self.restarts * (forward + (self.restarts > 1)), self.restarts * backward)

    def _check(self) -> None:
        super()._check()
        if self.threat.targeted or self.threat.bounds is None:
            raise ValueError(
                f"{type(self).__name__}: the threat model must be untargeted, on images in [0, 1], got {self.threat}. Only "
                "attacks on classifiers take targets and normalized tensors."
            )


def check_at_least(attack: object, **least: int) -> None:
    """Check that integer settings are not below their lower limits.

    Args:
        attack: Object that has the settings as attributes.
        **least: Lower limit per name of a setting.

    Raises:
        TypeError: A setting is not a whole number.
        ValueError: A setting is too small.
    """
    for name, limit in least.items():
        check_whole(f"{type(attack).__name__}: {name}", getattr(attack, name))
        if getattr(attack, name) < limit:
            raise ValueError(
                f"{type(attack).__name__}: {name} must be at least {limit}, got {getattr(attack, name)}. Give a larger number."
            )
