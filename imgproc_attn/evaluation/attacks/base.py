"""What all attacks share: what they refuse, whom they leave alone, what they return."""

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

Objective = Callable[[Tensor, Tensor], Tensor]


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
        adversarial: ``[B, C, H, W]``, within the threat model around the images.
        success: ``[B]`` bool, whether the prediction for it is what the adversary wants.
        by: ``[B]``, of several attacks the number of that which fooled the sample, -1 for none, and for samples that were wrong
            before; None for a single attack.
    """

    adversarial: Tensor
    success: Tensor
    by: Tensor | None = None


class Passes(NamedTuple):
    """What an attack costs a sample at most: passes through the model, forward and backward."""

    forward: int
    backward: int


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B, classes]`` logits, in float32 at least.

    Raises:
        TypeError: As `finite_logits`.
        FloatingPointError: As `finite_logits`.
        ValueError: As `finite_logits`, or labels that the model has no logit for.
    """
    logits = finite_logits(model, images)
    check_classes_of_labels(labels, logits)
    return logits


def predict(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` predicted classes. As `checked_logits` otherwise."""
    return checked_logits(model, images, labels).argmax(dim=1)


def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` bool, whether the prediction is the label. As `predict` otherwise."""
    return predict(model, images, labels) == labels


def gradient_of(objective: Objective, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[B]`` of an objective, its gradient by the images, and the logits; whatever surrounds the call.

    All are in float32 at least, also of a model in half precision.

    Raises:
        FloatingPointError: A gradient that is not finite, whose sign is 0: attacks would stand still.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = at_least_float32(model(images))
        values = objective(logits, labels)
        gradient = at_least_float32(gradient_by(images, values.sum()))
    if not gradient.isfinite().all():
        count = int((~gradient.isfinite().flatten(1).all(1)).sum())
        raise FloatingPointError(
            f"For {count} of {len(images)} images the gradient is not finite, though logits are: attacks that follow it would "
            "stand still. Look for roots, norms or logarithms at 0 and for torch.where around them, or attack with Square."
        )
    return values.detach(), gradient, logits.detach()


def gradient_by(images: Tensor, value: Tensor) -> Tensor:
    """Of a sum of values by the images; 0 where none reaches them, through a cast to whole numbers, say."""
    if not value.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(value, images, allow_unused=True, materialize_grads=True)[0]


@dataclass(frozen=True)
class Attack(ABC):
    """An attack with its settings; calling it attacks.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
    """

    threat: Any  # a number becomes a ThreatModel

    restarts = 1  # of those that have several

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "threat", ThreatModel.of(self.threat))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None
        self._check()

    def _check(self) -> None:
        """Refuse settings that make no sense."""
        check_at_least(self, restarts=1)
        check_whole(f"{type(self).__name__}: seed", getattr(self, "seed", 0))

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        return self.threat.eps

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack those who are not fooled yet, restart by restart.

        Args:
            model: Maps images to logits, in evaluation mode.
            images: ``[B, C, H, W]``, in the threat model's range. What is found is in the ball in the type of the images, also
                in half precision (see `ThreatModel.rounded`).
            labels: ``[B]``.
            sample_ids: ``[B]`` numbers of the images in their data set, which random draws depend on; default 0 to B - 1.

        Raises:
            TypeError: Images, labels or what the model returns are no tensors.
            ValueError: As `check_batch`, or settings that do not fit the model.
            FloatingPointError: Logits or gradients that are not finite.
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
            found = self.search(model, images[left], labels[left], ids[left.cpu()], restart)
            adversarial[left] = found
            success[left] = threat.succeeded(predict(model, found, labels[left]), labels[left])
        return AttackResult(adversarial, success)

    @abstractmethod
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        """What one restart finds for every image, already fooled or not."""

    def search(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int) -> Tensor:
        """The worst points that one restart comes by; what `perturb` ends with, unless an attack knows better."""
        return self.perturb(model, images, labels, ids, restart)

    @property
    @abstractmethod
    def passes_a_restart(self) -> Passes:
        """Of `search`."""

    @property
    def passes(self) -> Passes:
        """Of a call, for a sample that withstands."""
        forward, backward = self.passes_a_restart
        return Passes(1 + self.restarts * (forward + 1), self.restarts * backward)

    def random_start(self, images: Tensor, ids: Tensor, key: tuple[int, ...]) -> Tensor:
        """Points of the balls, by sample and ``key``; in float32 at least."""
        threat = self.threat
        inside = draw_per_sample(at_least_float32(images), ids, key, lambda shape, g: threat.norm.random(shape, g))
        return threat.project(images + threat.eps * inside, images)


class TargetAttack(Attack):
    """An attack on outputs of any kind: it lowers a quality that is measured per sample.

    Subclasses say what is measured (`quality`) and what is followed (``objective_at``). They stand before the attack whose
    steps they take: ``class PixelPGD(PixelAttack, PGD)``.
    """

    @abstractmethod
    def quality(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return ``[B]`` numbers, smaller for worse outputs."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack images; a sample is a success if its quality is lower than before.

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
        """Return, per sample, the point of the restart that leaves the lowest quality."""
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
        """Passes of `worst`."""
        forward, backward = self.passes_a_restart
        return Passes(self.restarts * (forward + (self.restarts > 1)), self.restarts * backward)

    def _check(self) -> None:
        super()._check()
        if self.threat.targeted or self.threat.bounds is None:
            raise ValueError(
                f"{type(self).__name__}: images are attacked in [0, 1] and away from their labels; targets and normalized "
                "space are of classifiers."
            )


def check_at_least(attack: object, **least: int) -> None:
    """Refuse counts below their least.

    Raises:
        TypeError: One is no whole number.
        ValueError: The first that is too small.
    """
    for name, limit in least.items():
        check_whole(f"{type(attack).__name__}: {name}", getattr(attack, name))
        if getattr(attack, name) < limit:
            raise ValueError(f"{type(attack).__name__}: {name} is {getattr(attack, name)}, but must be at least {limit}.")
