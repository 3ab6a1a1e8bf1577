"""Checks that the gradient exists and belongs to the function. A model with a lost or wrong gradient only looks robust."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .attacks.base import Objective, Passes, gradient_by
from .findings import Finding
from .losses import cross_entropy
from .normalization import InPrecision

__all__ = ["FLAGS", "GRADIENT_PASSES", "check_gradients", "gradient_findings", "gradient_flags"]

FLAGS = ("lost", "known", "wrong")  # names of the columns of `gradient_flags`

WEAK = 1e-3  # Share of the largest gradient of a batch. Smaller gradients are not compared because of rounding.
GRADIENT_LOST = 1e-10  # A sample has no gradient if its largest absolute value is below this.
LOST_SHARE = 0.05  # Share of samples with lost or wrong gradients above which there is a finding.
DERIVATIVE_ERROR = 1e-2  # Largest relative error of the slope along the gradient.
ACROSS_ERROR = 0.1  # Largest error of the slope in a random direction, relative to the usual slope there.
# Lengths of finite differences, of which one must agree. Short ones meet no kinks, long ones exceed rounding in float32.
STEPS = (1e-5, 1e-6, 1e-3, 1e-4, 1e-2)
GRADIENT_PASSES = Passes(4 + 4 * len(STEPS), 2)  # at most: two gradients, two values, and both ends of all differences
SLACK = 5  # Factor of these errors for models that compute in float32 whatever the input dtype is.


def check_gradients(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], objective: Objective = cross_entropy
) -> list[Finding]:
    """Return findings of vanishing gradients and of gradients that do not belong to the function.

    Args:
        model: Maps images to logits, in evaluation mode.
        batches: Batches of images and labels.
        objective: Objective whose gradients are checked. A mean over pixels is not suitable, because its gradients are small.
    """
    flags = [gradient_flags(model, images, labels, objective) for images, labels in batches]
    return gradient_findings({name: torch.cat([part[name] for part in flags]) for name in FLAGS if flags})


def gradient_flags(model: nn.Module, images: Tensor, labels: Tensor, objective: Objective = cross_entropy) -> dict[str, Tensor]:
    """Return where gradients vanish, and where they do not belong to the function.

    Vanishing gradients are looked for in the precision of the attack. Wrong gradients are detected by finite differences, in
    float64 if the model supports it.

    Args:
        model: As in `check_gradients`.
        images: ``[B, C, H, W]``.
        labels: Labels of the images.
        objective: As in `check_gradients`.

    Returns:
        ``[B]`` ints, 0 or 1: ``lost``, no gradient; ``known``, the gradient is large enough to compare; ``wrong``, it differs.
    """
    exact, dtype = _in_double(model, images[:1])
    largest = _gradient(model, images, labels, objective).flatten(1).abs().amax(1)
    lost = ~(largest.isfinite() & (largest >= GRADIENT_LOST))
    known, differs = _differs_from_function(exact, images.to(dtype), labels, objective)
    return {name: flags.int().cpu() for name, flags in zip(FLAGS, (lost, known, known & differs))}


def gradient_findings(flags: Mapping[str, Tensor]) -> list[Finding]:
    """Return the findings of `check_gradients` from the ``[n]`` flags of all images. No flags give no findings."""
    if not flags:
        return []
    findings, lost, wrong = [], flags["lost"], flags["wrong"][flags["known"] > 0]
    if _share(lost) > LOST_SHARE:
        findings.append(
            Finding(
                "vanishing gradients",
                f"The loss has no gradient for {100 * _share(lost):.0f} % of the images (largest value below "
                f"{GRADIENT_LOST:g}, or not finite), so attacks that follow it cannot move. Look for rounding, saturated "
                "softmaxes, detached tensors, half precision and roots of 0. Attack with Square.",
            )
        )
    if _share(wrong) > LOST_SHARE:
        findings.append(
            Finding(
                "wrong gradients",
                f"For {100 * _share(wrong):.0f} % of the images autograd's gradient is not that of the function (finite "
                f"differences differ by more than {100 * DERIVATIVE_ERROR:g} % along it). Something in the forward pass is "
                "detached, rounded or replaced in the backward pass. Remove it for the attack.",
            )
        )
    return findings


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def _in_double(model: nn.Module, image: Tensor) -> tuple[nn.Module, torch.dtype]:
    """Return a copy in float64 without autocast, whose rounding would disturb finite differences, and its input dtype.

    A model that needs another precision inside is returned unchanged.
    """
    exact = copy.deepcopy(model).double().eval()
    for module in exact.modules():
        if isinstance(module, InPrecision):
            module.autocast = nullcontext
    try:
        with torch.no_grad():
            exact(image.double())
    except RuntimeError:
        return model, image.dtype
    return exact, torch.float64


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Return the gradient of the objective with respect to the images; 0 where there is none."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        return gradient_by(points, objective(model(points), labels).sum())


@torch.no_grad()
def _differs_from_function(model: nn.Module, images: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return two ``[B]`` bool tensors: whether the gradient is large enough to compare, and whether it is wrong.

    The slopes are central differences along the gradient and along random signs. The second direction shows parts of the
    function that the gradient misses.
    """
    gradient = _gradient(model, images, labels, objective)
    size = gradient.flatten(1).norm(dim=1).clamp_min(1e-300)
    along = gradient / size[:, None, None, None]
    signs = torch.randint(2, images.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    across = (signs.to(images) / signs.numel() ** 0.5).expand_as(images)
    usual = size / signs.numel() ** 0.5  # The expected slope in a random direction.
    here, hardly_there = (objective(model(images + h * along), labels) for h in (0, 1e-9))
    slack = SLACK if torch.equal(here, hardly_there) else 1
    wrong = _slope_differs(model, images, labels, objective, (gradient, along), slack * DERIVATIVE_ERROR * size)
    wrong |= _slope_differs(model, images, labels, objective, (gradient, across), slack * ACROSS_ERROR * usual)
    finite = size.isfinite()
    known = finite & (gradient.flatten(1).abs().amax(1) >= GRADIENT_LOST) & (size >= WEAK * (size * finite).nan_to_num().max())
    return known, wrong


def _slope_differs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    gradient_and_direction: tuple[Tensor, Tensor],
    tolerance: Tensor,
) -> Tensor:
    """Return ``[B]`` bool: whether the slope in a direction differs from the gradient's for all `STEPS`."""
    gradient, direction = gradient_and_direction
    expected = (gradient * direction).flatten(1).sum(1)
    differs = torch.ones_like(expected, dtype=torch.bool)
    for h in STEPS:
        ahead, behind = (objective(model(images + sign * h * direction), labels) for sign in (1, -1))
        differs &= ((ahead - behind) / (2 * h) - expected).abs() > tolerance
        if not differs.any():  # The first step is usually enough.
            break
    return differs
