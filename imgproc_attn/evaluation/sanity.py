"""Is a robustness number to be believed? Checks that find what makes models look robust that are not.

Each check returns findings: what was seen, what it means, what to do. None is proof of robustness; a finding is a reason not to
believe a number yet. After auto-attack's checks (arXiv 2003.01690) and Athalye et al. (arXiv 1802.00420), with one of our own:
saturated filters, which pass no gradient to queries and keys.
"""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from ..bandwidths import Bandwidth
from ..diagnostics import saturation
from ..kernels import DotProduct
from ..models import FilterVisionTransformer
from .attacks import FGSM, PGD, Attack, Square, is_correct
from .normalization import NormalizedModel
from .threat import ThreatModel

GRADIENT_LOST = 1e-10  # largest absolute gradient of a sample, below which it counts as none
LOST_SHARE = 0.05  # of samples
DERIVATIVE_ERROR = 1e-2  # relative, in float64
POINTS = 0.5  # of accuracy, by which a weaker attack may beat a stronger one
MORE_POINTS = 2.0  # of accuracy, which five times the steps, or another form of the gradient, may still win
BY_CHANCE = 2  # images that a random search may find before a single run of PGD does
SATURATED_SHARE = 0.01  # of filter rows


@dataclass(frozen=True)
class Finding:
    """A reason to doubt.

    Attributes:
        check: Its short name.
        message: What was seen, what it means, what to do.
    """

    check: str
    message: str


@torch.no_grad()
def check_outputs(model: nn.Module, images: Tensor) -> list[Finding]:
    """Random outputs; probabilities in the place of logits."""
    first, second = model(images), model(images)
    found = []
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        found.append(
            Finding(
                "random outputs",
                "Two passes over the same images differ: gradients are of other models than the one they attack. Switch "
                "off what "
                "draws random numbers, or attack the average of many passes.",
            )
        )
    if first.min() >= 0 and first.max() <= 1 and torch.allclose(first.sum(1), torch.ones_like(first[:, 0]), atol=1e-4):
        found.append(
            Finding(
                "probabilities",
                "Outputs are probabilities, not logits: the loss of probabilities has next to no gradient where the model is "
                "sure. Remove the softmax.",
            )
        )
    return found


def check_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Finding]:
    """Gradients that vanish, or are not those of the function: by autograd against finite differences, in float64."""
    model, images = copy.deepcopy(model).double().eval(), images.double()

    def losses(points: Tensor) -> Tensor:
        return F.cross_entropy(model(points), labels, reduction="none")

    with torch.enable_grad():
        points = images.detach().requires_grad_()
        value = losses(points).sum()
        gradient = torch.autograd.grad(value, points)[0] if value.requires_grad else torch.zeros_like(points)
    largest = gradient.flatten(1).abs().amax(1)
    lost = (largest < GRADIENT_LOST).double().mean().item()
    found = []
    if lost > LOST_SHARE:
        found.append(
            Finding(
                "vanishing gradients",
                f"The loss has no gradient for {100 * lost:.0f} % of the images (largest value below {GRADIENT_LOST:g}): "
                f"attacks "
                "that follow it stand still. Look for rounding, saturated softmaxes, detached tensors; attack with Square.",
            )
        )
    wrong = _derivative_errors(losses, images, gradient)[largest >= GRADIENT_LOST] > DERIVATIVE_ERROR
    if len(wrong) and wrong.double().mean() > LOST_SHARE:
        found.append(
            Finding(
                "wrong gradients",
                f"For {100 * wrong.double().mean():.0f} % of the images autograd's gradient is not that of the function "
                f"(finite "
                f"differences in float64 differ by more than {100 * DERIVATIVE_ERROR:g} %): something in the forward pass is "
                "detached, rounded or replaced in the backward pass. Lift it while attacking.",
            )
        )
    return found


@torch.no_grad()
def _derivative_errors(losses, images: Tensor, gradient: Tensor, step: float = 1e-5) -> Tensor:
    """``[B]`` relative errors of the derivative along the gradient, by central differences of two lengths."""
    direction = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
    expected = (gradient * direction).flatten(1).sum(1)
    errors = []
    for h in (step, step / 10):  # a kink within one step is seldom within the other
        slope = (losses(images + h * direction) - losses(images - h * direction)) / (2 * h)
        errors.append((slope - expected).abs() / torch.maximum(slope.abs(), expected.abs()).clamp_min(1e-300))
    return torch.minimum(*errors)


def check_flags(robust: Mapping[str, Tensor], white_box: list[str], black_box: list[str]) -> list[Finding]:
    """What the flags of several attacks under one threat model say about each other.

    Args:
        robust: ``{attack: [n] bool}``; FGSM and PGD go by these names.
        white_box: Those that follow gradients.
        black_box: Those that do not.
    """
    found = []
    accuracy = {name: 100 * flags.double().mean().item() for name, flags in robust.items()}
    if {"FGSM", "PGD"} <= accuracy.keys() and accuracy["PGD"] > accuracy["FGSM"] + POINTS:
        found.append(
            Finding(
                "PGD weaker than FGSM",
                f"PGD leaves {accuracy['PGD']:.1f} %, FGSM {accuracy['FGSM']:.1f} %: many small steps find less than a "
                f"large one, "
                "so the gradient misleads. Report no minimum of the two; look for masking.",
            )
        )
    if white_box and black_box:
        by_white = torch.stack([robust[name] for name in white_box]).all(0)
        by_black = torch.stack([robust[name] for name in black_box]).all(0)
        missed = 100 * (by_white & ~by_black).double().mean().item()
        if missed > POINTS and (by_white & ~by_black).sum() > BY_CHANCE:
            found.append(
                Finding(
                    "black box beats white box",
                    f"{missed:.1f} % of the images withstand {', '.join(white_box)} and fall to {', '.join(black_box)}, which "
                    f"see "
                    "no gradient: it is masked. Attack adaptively.",
                )
            )
    return found


def check_strength(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int = 0) -> list[Finding]:
    """Whether PGD has converged, whether it wins in the end, and whether the scale of the logits holds it back."""

    def left(attack: Attack, model: nn.Module = model) -> float:
        return 100 * (~attack(model, images, labels).success).double().mean().item()

    found = []
    few, many = left(PGD(threat, 20, seed=seed)), left(PGD(threat, 100, restarts=2, seed=seed))
    if few - many > MORE_POINTS:
        found.append(
            Finding(
                "more steps still help",
                f"PGD leaves {few:.1f} % after 20 steps and {many:.1f} % after 100 steps from 2 starts: it has not "
                f"converged. Give "
                "it more, or use APGD.",
            )
        )
    if threat.bounds is not None and threat.norm.name == "Linf":
        radii = [radius for radius in (0.25, 0.5) if radius > threat.eps] or [1.0]
        grown = [left(PGD(eps, 40, seed=seed)) for eps in radii]
        chance = 100 / model(images[:1]).shape[1]
        if grown[-1] > max(POINTS, chance / 2) or any(b > a + POINTS for a, b in itertools.pairwise([few, *grown])):
            found.append(
                Finding(
                    "accuracy does not fall to 0",
                    f"Accuracy under PGD at eps {', '.join(f'{r:g}' for r in radii)} is "
                    f"{', '.join(f'{a:.1f} %' for a in grown)}, though almost any image lies in such a ball: the attack is "
                    "stuck.",
                )
            )
    for factor in (0.1, 0.01):
        scaled = left(PGD(threat, 20, seed=seed), _Scaled(model, factor).eval())
        if few - scaled > MORE_POINTS:
            found.append(
                Finding(
                    "scale of the logits",
                    f"PGD leaves {few:.1f} %, and {scaled:.1f} % with logits multiplied by {factor:g}: the loss is flat where "
                    f"the "
                    "model is sure. Use APGD-DLR, whose objective has no scale.",
                )
            )
            break
    return found


def check_saturation(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int = 0) -> list[Finding]:
    """Saturated filters, and what an attack gains that widens the kernels in its backward pass (2, 4, 8 times).

    The forward pass stays the model's; only gradients are those of wider kernels, which are not flat.
    """
    found = []
    inner = model.model if isinstance(model, NormalizedModel) else model
    if isinstance(inner, FilterVisionTransformer):
        seen = (images - model.mean) / model.std if isinstance(model, NormalizedModel) else images
        share = saturation(inner, seen)
        if share > SATURATED_SHARE:
            found.append(
                Finding(
                    "saturated filters",
                    f"{100 * share:.1f} % of the filter's rows have a weight above 1 - 1e-4: hardly any gradient reaches their "
                    "queries and keys, and attacks that follow it are blind there. See what the adaptive attack leaves.",
                )
            )
    plain = 100 * (~PGD(threat, 20, seed=seed)(model, images, labels).success).double().mean().item()
    for factor in (2, 4, 8):
        wide = widened(model, factor)
        if wide is None:
            return found
        attacked = StraightThrough(model, wide).eval()
        adaptive = 100 * (~PGD(threat, 20, seed=seed)(attacked, images, labels).success).double().mean().item()
        if plain - adaptive > MORE_POINTS:
            found.append(
                Finding(
                    "adaptive attack",
                    f"PGD leaves {plain:.1f} %, and {adaptive:.1f} % with gradients of kernels {factor} times as wide: sharp "
                    "kernels mask the gradient. Report the adaptive number.",
                )
            )
            break
    return found


def sanity_checks(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel | float, seed: int = 0
) -> list[Finding]:
    """All checks on a few images, those the model gets right; empty if none of the known signs shows.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        images: ``[B, C, H, W]``; some hundred are enough.
        labels: ``[B]``.
        threat: What the numbers to be believed were measured under.
        seed: Of all draws.

    Raises:
        ValueError: The model gets none of the images right.
    """
    threat = ThreatModel.of(threat)
    right = is_correct(model, images, labels)
    if not right.any():
        raise ValueError(f"The model gets none of {len(images)} images right: there is no robustness to doubt.")
    images, labels = images[right], labels[right]
    found = [*check_outputs(model, images), *check_gradients(model, images[:32], labels[:32])]
    attacks: dict[str, Attack] = {"FGSM": FGSM(threat), "PGD": PGD(threat, 20, seed=seed)}
    black_box = []
    if threat.norm.name == "Linf":
        attacks["Square"], black_box = Square(threat, 300, seed=seed), ["Square"]
    robust = {name: ~attack(model, images, labels).success for name, attack in attacks.items()}
    found += check_flags(robust, ["FGSM", "PGD"], black_box)
    found += check_strength(model, images, labels, threat, seed)
    return found + check_saturation(model, images, labels, threat, seed)


class _Scaled(nn.Module):
    """Logits times a number."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


class StraightThrough(nn.Module):
    """The logits of one model, with the gradient of another (backward pass differentiable approximation, arXiv 1802.00420).

    Args:
        model: Gives the values.
        surrogate: Gives the gradient.
    """

    def __init__(self, model: nn.Module, surrogate: nn.Module) -> None:
        super().__init__()
        self.model, self.surrogate = model, surrogate

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            exact = self.model(images)
        near = self.surrogate(images)
        return near + (exact - near).detach()


@torch.no_grad()
def widened(model: nn.Module, factor: float) -> nn.Module | None:
    """A copy whose attention kernels are ``factor`` times as wide in feature space; None for a model without attention.

    Range bandwidths are multiplied; scores of dot products, timm's own attention among them, are divided by the square.
    """
    model, changed = copy.deepcopy(model), False
    for name, module in model.named_modules():
        if isinstance(module, Bandwidth) and name.endswith("range_bandwidth"):
            module.log_excess.copy_((module() * factor - module.floor).log())
            changed = True
        elif isinstance(module, Attention | DotProduct):
            module.scale = module.scale / factor**2
            changed = True
    return model if changed else None
