"""Adversarial attacks in the L-infinity ball, on images in [0, 1].

An attack is an object with settings; calling it with ``(model, images, labels)`` returns the adversarial images and whether
each fools the model. The model takes images in [0, 1] (see `NormalizedModel`), eps is in the same units (8/255 is 8 grey
levels), and the images found lie in the ball and in [0, 1], by construction.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draws import draw


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
        adversarial: ``[B, C, H, W]``, in [0, 1] and within eps of the images.
        success: ``[B]`` bool, whether the model's prediction for it differs from the label.
    """

    adversarial: Tensor
    success: Tensor


def _check_eps(name: str, eps: float) -> None:
    if not math.isfinite(eps) or not 0 <= eps <= 1:
        raise ValueError(f"{name}: eps is {eps}, but must lie in [0, 1], the range of the images; 8 grey levels are eps=8/255.")


def check_images(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse what would make a robustness number wrong.

    Raises:
        ValueError: A model in training mode, a call inside ``torch.inference_mode()``, images that are no floats in
            [0, 1], labels that are not one class index each.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout and its like feign robustness; call model.eval().")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Attacks need gradients, which torch.inference_mode() rules out; call them outside it (no_grad is fine)."
        )
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(
            f"Images are {images.dtype} of shape {list(images.shape)}; give floats [batch, channels, height, width]."
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(f"Labels are {labels.dtype} of shape {list(labels.shape)}; give {len(images)} class indices.")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"Images range from {images.min():.4g} to {images.max():.4g}, but must lie in [0, 1]; leave normalisation to "
            f"NormalizedModel."
        )


def _loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy, in the images' type, whatever surrounds the call."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]


def _project(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Into the ball around ``images`` and into [0, 1]."""
    return adversarial.clamp(images - eps, images + eps).clamp(0, 1)


@torch.no_grad()
def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``[B]`` bool, whether the model's prediction is the label.

    Raises:
        FloatingPointError: Logits that are not finite, whose argmax would count as a prediction.
    """
    logits = model(images)
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"{(~logits.isfinite()).sum()} of {logits.numel()} logits are not finite; the model is broken."
        )
    return logits.argmax(dim=1) == labels


@dataclass(frozen=True)
class FGSM:
    """Fast gradient sign method (arXiv 1412.6572): one step of length eps along the sign of the loss gradient.

    Args:
        eps: Radius of the L-infinity ball, in units of [0, 1].
    """

    eps: float

    def __post_init__(self) -> None:
        _check_eps("FGSM", self.eps)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack. See `check_images` for what is refused; ``sample_ids`` are not needed, the attack is deterministic."""
        check_images(model, images, labels)
        step = self.eps * _loss_gradient(model, images, labels).sign()
        adversarial = _project(images + step, images, self.eps)
        return AttackResult(adversarial, ~is_correct(model, adversarial, labels))


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (arXiv 1706.06083): sign steps from random points of the ball, projected back.

    The worst of all restarts counts, and within a restart its last point, as published; a sample that is already fooled is
    left alone.

    Args:
        eps: Radius of the L-infinity ball, in units of [0, 1].
        steps: Gradient steps a restart.
        step_size: Length of a step. Default ``2.5 eps / steps``, which lets a point cross the ball.
        restarts: Random starting points a sample.
        seed: Of the starting points, which depend on it, the restart and the sample's id alone.
    """

    eps: float
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_eps("PGD", self.eps)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"PGD: {name} is {getattr(self, name)}, but must be at least 1.")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(
                f"PGD: step_size is {self.step_size}, but must be positive and finite; None takes 2.5 eps / steps."
            )

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack. ``sample_ids`` ``[B]`` make the random starts independent of batching; default 0 to B - 1."""
        check_images(model, images, labels)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids
        adversarial, success = images.clone(), ~is_correct(model, images, labels)
        for restart in range(self.restarts):
            left = (~success).nonzero()[:, 0]
            if len(left) == 0:
                break
            found = self.perturb(model, images[left], labels[left], ids[left.cpu()], restart)
            adversarial[left] = found
            success[left] = ~is_correct(model, found, labels[left])
        return AttackResult(adversarial, success)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        """The last points of one restart, for every sample, already fooled or not (what adversarial training trains on)."""
        start = draw(images, ids, (self.seed, restart), lambda shape, g: torch.rand(shape, generator=g) * 2 - 1)
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        adversarial = _project(images + self.eps * start, images, self.eps)
        for _ in range(self.steps):
            step = step_size * _loss_gradient(model, adversarial, labels).sign()
            adversarial = _project(adversarial + step, images, self.eps)
        return adversarial
