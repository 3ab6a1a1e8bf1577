"""What all attacks share: what they refuse, whom they leave alone, what they return."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..draws import draw
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


def check_images(model: nn.Module, images: Tensor, labels: Tensor, bounds: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """Refuse what would make a robustness number wrong.

    Raises:
        ValueError: As `check_input`, or labels that are not one class index each.
    """
    check_input(model, images, bounds)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"Labels are {labels.dtype} of shape {list(labels.shape)}; give {len(images)} class indices, int64.")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"A label is {labels.min()}, but classes count from 0; leave out images without a label.")


def check_input(model: nn.Module, images: Tensor, bounds: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """What `check_images` asks of model and images.

    Raises:
        ValueError: A model in training mode, a call inside ``torch.inference_mode()``, images that are no finite floats in
            ``bounds``.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        which = f"{training!r} of the model" if training else "The model"
        raise ValueError(f"{which} is in training mode, where dropout and its like feign robustness; call model.eval().")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Attacks need gradients, which torch.inference_mode() rules out; call them outside it (no_grad is fine)."
        )
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(
            f"Images are {images.dtype} of shape {list(images.shape)}; give floats [batch, channels, height, width]."
        )
    if not len(images):
        return
    low, high = torch.stack(images.aminmax()).tolist()  # one pass; NaN is least and largest
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("Images hold values that are not finite.")
    if bounds is not None and not (bounds[0] <= low and high <= bounds[1]):
        raise ValueError(
            f"Images range from {low:.4g} to {high:.4g}, but must lie in [{bounds[0]:g}, {bounds[1]:g}]; leave normalisation "
            "to NormalizedModel."
        )


@torch.no_grad()
def finite_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of any shape.

    Raises:
        FloatingPointError: Some are not finite, whose argmax would count as a prediction.
    """
    logits = model(images)
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"{(~logits.isfinite()).sum()} of {logits.numel()} logits are not finite; the model is broken."
        )
    return logits


def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B, classes]`` logits.

    Raises:
        FloatingPointError: As `finite_logits`.
        ValueError: Logits of another shape, or labels that the model has no logit for.
    """
    logits = finite_logits(model, images)
    if logits.ndim != 2:
        raise ValueError(f"The model gives {list(logits.shape)} for {len(images)} images, not a label an image.")
    if len(labels) and labels.max() >= logits.shape[1]:
        raise ValueError(f"A label is {labels.max()}, but the model has {logits.shape[1]} classes.")
    return logits


def predict(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` predicted classes. As `checked_logits` otherwise."""
    return checked_logits(model, images, labels).argmax(dim=1)


def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` bool, whether the prediction is the label. As `predict` otherwise."""
    return predict(model, images, labels) == labels


def gradient_of(objective: Objective, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[B]`` of an objective, its gradient by the images, and the logits; whatever surrounds the call.

    Raises:
        FloatingPointError: A gradient that is not finite, whose sign is 0: attacks would stand still.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        values = objective(logits, labels)
        gradient = gradient_by(images, values.sum())
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
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None
        self._check()

    def _check(self) -> None:
        """Refuse settings that make no sense."""
        check_at_least(self, restarts=1)

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        return self.threat.eps

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack those who are not fooled yet, restart by restart.

        Args:
            model: Maps images to logits, in evaluation mode.
            images: ``[B, C, H, W]``, in the threat model's range.
            labels: ``[B]``.
            sample_ids: ``[B]`` numbers of the images in their data set, which random draws depend on; default 0 to B - 1.

        Raises:
            ValueError: As `check_images`, or settings that do not fit the model.
            FloatingPointError: Logits or gradients that are not finite.
        """
        threat = self.threat
        check_images(model, images, labels, threat.bounds)
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
        """Points of the balls, by sample and ``key``."""
        threat = self.threat
        inside = draw(images, ids, key, lambda shape, g: threat.norm.random(shape, g))
        return threat.project(images + threat.eps * inside, images)


def check_at_least(attack: object, **least: int) -> None:
    """Refuse counts below their least.

    Raises:
        ValueError: The first of them.
    """
    for name, limit in least.items():
        if getattr(attack, name) < limit:
            raise ValueError(f"{type(attack).__name__}: {name} is {getattr(attack, name)}, but must be at least {limit}.")
