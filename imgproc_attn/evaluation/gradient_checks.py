"""Is autograd's gradient there, and is it the function's? A model whose gradient is lost or wrong only looks robust."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .attacks.base import Objective, gradient_by
from .findings import Finding
from .losses import cross_entropy
from .normalization import InPrecision

WEAK = 1e-3  # of the largest gradient of a batch; smaller ones may drown in rounding, and are not held against the function
GRADIENT_LOST = 1e-10  # largest absolute gradient of a sample, below which it counts as none
LOST_SHARE = 0.05  # of samples
DERIVATIVE_ERROR = 1e-2  # along the gradient, relative
ACROSS_ERROR = 0.1  # in another direction, of what a gradient of that length has there
# Lengths of finite differences, of which one must agree: a short one meets no kink, a long one drowns rounding in float32.
STEPS = (1e-5, 1e-6, 1e-3, 1e-4, 1e-2)
SLACK = 5  # times these errors, for models that compute in float32 whatever they are given


def check_gradients(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], objective: Objective = cross_entropy
) -> list[Finding]:
    """Gradients that vanish, in the attack's precision; or are not the function's, by finite differences, in float64 if can be.

    Args:
        model: Maps images to logits, in evaluation mode.
        batches: Images and labels.
        objective: Its gradients are checked; not a mean over pixels, which makes them small.
    """
    found: list[Finding] = []
    exact, dtype = _in_double(model, batches[0][0][:1]) if batches else (model, None)
    lost, wrong = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    for x, y in batches:
        largest = _gradient(model, x, y, objective).flatten(1).abs().amax(1)
        lost = torch.cat([lost, ~(largest.isfinite() & (largest >= GRADIENT_LOST)).cpu()])
        known, differs = _differs_from_function(exact, x.to(dtype), y, objective)
        wrong = torch.cat([wrong, differs[known].cpu()])
    if _share(lost) > LOST_SHARE:
        found.append(
            Finding(
                "vanishing gradients",
                f"The loss has no gradient for {100 * _share(lost):.0f} % of the images (largest value below "
                f"{GRADIENT_LOST:g}, or not finite): attacks that follow it stand still. Look for rounding, saturated "
                "softmaxes, detached tensors, half precision, roots of 0; attack with Square.",
            )
        )
    if _share(wrong) > LOST_SHARE:
        found.append(
            Finding(
                "wrong gradients",
                f"For {100 * _share(wrong):.0f} % of the images autograd's gradient is not that of the function (finite "
                f"differences differ, by more than {100 * DERIVATIVE_ERROR:g} % along it): something in the forward pass is "
                "detached, rounded or replaced in the backward pass. Lift it while attacking.",
            )
        )
    return found


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def _in_double(model: nn.Module, image: Tensor) -> tuple[nn.Module, torch.dtype]:
    """A copy in float64, without autocast, which would round what finite differences are made of; and what it takes.

    A model that insists on another precision inside stays as it is.
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
    """Of the objective by the images; 0 where there is none."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        return gradient_by(points, objective(model(points), labels).sum())


@torch.no_grad()
def _differs_from_function(model: nn.Module, images: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """``[B]`` bool each: whether there is a gradient worth the name, and whether it is not the function's.

    By central differences along the gradient, and along a direction of random signs: what is hidden from the gradient does not
    show along it.
    """
    gradient = _gradient(model, images, labels, objective)
    size = gradient.flatten(1).norm(dim=1).clamp_min(1e-300)
    along = gradient / size[:, None, None, None]
    signs = torch.randint(2, images.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    across = (signs.to(images) / signs.numel() ** 0.5).expand_as(images)
    usual = size / signs.numel() ** 0.5  # what a gradient of that size has in a direction that has nothing to do with it
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
    """``[B]``: whether the slope in a direction is the gradient's by none of the `STEPS`."""
    gradient, direction = gradient_and_direction
    expected = (gradient * direction).flatten(1).sum(1)
    differs = torch.ones_like(expected, dtype=torch.bool)
    for h in STEPS:
        ahead, behind = (objective(model(images + sign * h * direction), labels) for sign in (1, -1))
        differs &= ((ahead - behind) / (2 * h) - expected).abs() > tolerance
        if not differs.any():  # the first step is enough, as a rule
            break
    return differs
