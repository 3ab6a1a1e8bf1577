"""Is a robustness number to be believed? Checks that find what makes models look robust that are not.

Each check returns findings: what was seen, what it means, what to do. None is proof of robustness; a finding is a reason not to
believe a number yet. After auto-attack's checks (arXiv 2003.01690) and Athalye et al. (arXiv 1802.00420), with one of our own:
saturated filters, which pass no gradient to queries and keys.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..bandwidths import Bandwidth
from ..diagnostics import SATURATED_SHARE, saturation
from ..kernels import DotProduct, Elliptical
from ..models import FilterVisionTransformer, from_timm
from .attacks import FGSM, PGD, Attack, Square, is_correct
from .attacks.base import Objective, gradient_by
from .normalization import InPrecision, NormalizedModel
from .objectives import cross_entropy
from .threat import LINF, ThreatModel

WEAK = 1e-3  # of the largest gradient of a batch; smaller ones may drown in rounding, and are not held against the function
GRADIENT_LOST = 1e-10  # largest absolute gradient of a sample, below which it counts as none
LOST_SHARE = 0.05  # of samples
DERIVATIVE_ERROR = 1e-2  # along the gradient, relative
ACROSS_ERROR = 0.1  # in another direction, of what a gradient of that length has there
# Lengths of finite differences, of which one must agree: a short one meets no kink, a long one drowns rounding in float32.
STEPS = (1e-5, 1e-6, 1e-3, 1e-4, 1e-2)
SLACK = 5  # times these errors, for models that compute in float32 whatever they are given
POINTS = 0.5  # of accuracy, by which a weaker attack may beat a stronger one
MORE_POINTS = 2.0  # of accuracy, which five times the steps, or another form of the gradient, may still win
BY_CHANCE = 2  # images that a random search may find before a single run of PGD does
STEPWISE = ("PGD", "MI-FGSM", "APGD-CE", "APGD-DLR", "APGD-T")  # white-box attacks that no black box should beat
BLACK_BOX = ("Square", "SPSA")
WIDER = (2, 4, 8)  # times, in the backward pass of the adaptive attack


@dataclass(frozen=True)
class Finding:
    """A reason to doubt.

    Attributes:
        check: Its short name.
        message: What was seen, what it means, what to do.
    """

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True)
class Checks:
    """What came of checking.

    Attributes:
        done: Names of what was checked.
        images: So many were looked at.
        findings: Reasons to doubt.
    """

    done: list[str]
    images: int
    findings: list[Finding]


@dataclass
class Trial:
    """A model, images it gets right, and the threat model its robustness is judged under.

    Attributes:
        model: Maps images to logits, in evaluation mode.
        images: ``[B, C, H, W]``.
        labels: ``[B]``.
        threat: Threat model.
        seed: Of all draws.
        batch_size: Images at a time.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int = 0
    batch_size: int = 64

    def robust(self, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """``[B]`` bool, what withstands an attack, of another model's logits if one is given."""
        parts = torch.arange(len(self.images)).split(self.batch_size)
        found = [attack(model or self.model, self.images[part], self.labels[part], part).success for part in parts]
        return ~torch.cat(found)

    @cached_property
    def withstand_pgd(self) -> Tensor:
        """``[B]`` bool, after PGD of 20 steps, which several checks compare with."""
        return self.robust(self.pgd)

    @property
    def pgd(self) -> PGD:
        """That attack."""
        return PGD(self.threat, 20, seed=self.seed)

    @cached_property
    def filters(self) -> FilterVisionTransformer | None:
        """The filter backbone in the model, or a copy of timm's vision transformer as one, whose rows can be looked at."""
        for module in self.model.modules():
            if isinstance(module, FilterVisionTransformer):
                return module
            if isinstance(module, VisionTransformer):
                try:
                    return from_timm(module)
                except TypeError:  # gated attention, other blocks
                    return None
        return None


def _differ(more: Tensor, less: Tensor, points: float) -> bool:
    """Whether flags differ by more than that, and by more than the one image that may be chance."""
    return _percent(more) - _percent(less) > points and int(more.sum() - less.sum()) > 1


def _percent(flags: Tensor) -> float:
    return 100 * flags.double().mean().item()


@torch.no_grad()
def check_outputs(model: nn.Module, images: Tensor) -> list[Finding]:
    """Random outputs; probabilities in the place of logits."""
    first, second = model(images), model(images)
    found = []
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        found.append(
            Finding(
                "random outputs",
                "Two passes over the same images differ: gradients are of other models than the one they attack. Switch off "
                "what draws random numbers, or attack the average of many passes.",
            )
        )
    sums = first.sum(1)  # below 1 where some classes alone are asked about
    if first.min() >= 0 and sums.min() > 0 and sums.max() <= 1 + 1e-4:
        found.append(
            Finding(
                "probabilities",
                "Outputs are probabilities, not logits: the loss of probabilities has next to no gradient where the model is "
                "sure. Remove the softmax.",
            )
        )
    return found


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
    if len(lost) and lost.double().mean() > LOST_SHARE:
        found.append(
            Finding(
                "vanishing gradients",
                f"The loss has no gradient for {_percent(lost):.0f} % of the images (largest value below {GRADIENT_LOST:g}, or "
                "not finite): attacks that follow it stand still. Look for rounding, saturated softmaxes, detached tensors, "
                "half precision, roots of 0; attack with Square.",
            )
        )
    if len(wrong) and wrong.double().mean() > LOST_SHARE:
        found.append(
            Finding(
                "wrong gradients",
                f"For {_percent(wrong):.0f} % of the images autograd's gradient is not that of the function (finite "
                f"differences differ, by more than {100 * DERIVATIVE_ERROR:g} % along it): something in the forward pass is "
                "detached, rounded or replaced in the backward pass. Lift it while attacking.",
            )
        )
    return found


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


def check_flags(robust: Mapping[str, Tensor], white_box: Sequence[str], black_box: Sequence[str]) -> list[Finding]:
    """What the flags of several attacks under one threat model say about each other.

    Args:
        robust: ``{attack: [n] bool}``; FGSM and PGD go by these names.
        white_box: Those that follow gradients.
        black_box: Those that do not.
    """
    found = []
    if {"FGSM", "PGD"} <= robust.keys() and _differ(robust["PGD"], robust["FGSM"], POINTS):
        found.append(
            Finding(
                "PGD weaker than FGSM",
                f"PGD leaves {_percent(robust['PGD']):.1f} %, FGSM {_percent(robust['FGSM']):.1f} %: many small steps find "
                "less than a large one, so the gradient misleads. Report no minimum of the two; look for masking.",
            )
        )
    if white_box and black_box:
        missed = torch.stack([robust[name] for name in white_box]).all(0)
        missed &= ~torch.stack([robust[name] for name in black_box]).all(0)
        if _percent(missed) > POINTS and missed.sum() > BY_CHANCE:
            found.append(
                Finding(
                    "black box beats white box",
                    f"{_percent(missed):.1f} % of the images withstand {', '.join(white_box)} and fall to "
                    f"{', '.join(black_box)}, which see no gradient: it is masked. Attack adaptively.",
                )
            )
    return found


def check_rows(rows: Sequence[Mapping[str, Any]], correct: Mapping[str, Tensor]) -> list[Finding]:
    """What all flags of an evaluation say: attacks beside each other at each radius, radii beside each other, ensembles.

    Args:
        rows: Of conditions under attack, as in ``result.json``.
        correct: ``{condition: [n] bool}``.
    """
    found = []
    at_one_radius: dict[str, dict[str, Tensor]] = {}
    for row in rows:
        attack, _, ball = row["name"].partition(" ")
        at_one_radius.setdefault(ball, {})[attack] = correct[row["name"]]
        found += _check_ensemble(row)
    for ball, robust in at_one_radius.items():
        kinds = [[name for name in names if name in robust] for names in (STEPWISE, BLACK_BOX)]
        found += [Finding(f.check, f"At {ball}: {f.message}") for f in check_flags(robust, *kinds)]
    for less, more in itertools.permutations([row for row in rows if row["name"].startswith(STEPWISE)], 2):
        alike = all(less[key] == more[key] for key in ("family", "norm", "space"))
        if alike and less["eps"] < more["eps"] and _differ(correct[more["name"]], correct[less["name"]], POINTS):
            found.append(
                Finding(
                    "accuracy rises with eps",
                    f"{less['name']} leaves {_percent(correct[less['name']]):.1f} %, {more['name']} "
                    f"{_percent(correct[more['name']]):.1f} %, though its ball holds the smaller one: the attack is stuck. Do "
                    "not believe the larger number.",
                )
            )
    return found


def _check_ensemble(row: Mapping[str, Any]) -> list[Finding]:
    """Whether what sees no gradient still found many after all that do."""
    last = {name: count for name, count in row.get("fooled_by", {}).items() if name in BLACK_BOX and count > BY_CHANCE}
    return [
        Finding(
            "black box beats white box",
            f"In {row['name']} {name} fools {count} of {row['n']} images that withstand APGD: gradients are masked. Attack "
            "adaptively.",
        )
        for name, count in last.items()
        if 100 * count / row["n"] > POINTS
    ]


def check_strength(trial: Trial) -> list[Finding]:
    """Whether PGD has converged, whether it wins in the end, and whether the scale of the logits holds it back."""
    found, threat = [], trial.threat
    few, many = trial.withstand_pgd, trial.robust(PGD(threat, 100, restarts=2, seed=trial.seed))
    if _differ(few, many, MORE_POINTS):
        found.append(
            Finding(
                "more steps still help",
                f"PGD leaves {_percent(few):.1f} % after 20 steps and {_percent(many):.1f} % after 100 steps from 2 starts: it "
                "has not converged. Give it more, or use APGD.",
            )
        )
    if threat.bounds is not None:
        found += _check_large_radii(trial)
    for factor in (0.1, 0.01):
        scaled = trial.robust(trial.pgd, _Scaled(trial.model, factor).eval())
        if _differ(few, scaled, MORE_POINTS):
            found.append(
                Finding(
                    "scale of the logits",
                    f"PGD leaves {_percent(few):.1f} %, and {_percent(scaled):.1f} % with logits multiplied by {factor:g}: the "
                    "loss is flat where the model is sure. Use APGD-DLR, whose objective has no scale.",
                )
            )
            break
    return found


def _check_large_radii(trial: Trial) -> list[Finding]:
    """In the L-infinity ball, whatever the threat's norm; one image may stay by chance."""
    own = trial.threat.norm == LINF
    radii = [radius for radius in (0.25, 0.5) if not own or radius > trial.threat.eps] or [1.0]
    grown = [trial.robust(PGD(radius, 40, seed=trial.seed)) for radius in radii]
    least = max(POINTS, 50 / trial.model(trial.images[:1]).shape[1])  # half of what guessing gets right
    falls = not any(_differ(b, a, POINTS) for a, b in itertools.pairwise([trial.withstand_pgd, *grown] if own else grown))
    if falls and (_percent(grown[-1]) <= least or grown[-1].sum() <= 1):
        return []
    shares = ", ".join(f"{_percent(flags):.1f} %" for flags in grown)
    return [
        Finding(
            "accuracy does not fall to 0",
            f"Accuracy under PGD at eps {', '.join(f'{radius:g}' for radius in radii)} is {shares}, "
            "though almost any image lies in such a ball: the attack is stuck. Look for masked gradients, and report Square "
            "beside PGD.",
        )
    ]


def check_saturation(trial: Trial) -> list[Finding]:
    """Saturated filters, and what an attack gains that widens the kernels in its backward pass (2, 4, 8 times).

    The forward pass stays the model's; only gradients are those of wider kernels, which are not flat.
    """
    found, plain = [], _percent(trial.withstand_pgd)
    adaptive = {f: trial.robust(trial.pgd, wide) for f in WIDER if (wide := _backward_of_wider(trial.model, f))}
    share = _saturated_rows(trial)
    if share > SATURATED_SHARE:
        found.append(
            Finding(
                "saturated filters",
                f"{100 * share:.1f} % of the filter's rows have a weight above 1 - 1e-4: hardly any gradient reaches their "
                f"queries and keys, and attacks that follow it are blind there. PGD leaves {plain:.1f} %; with gradients of "
                f"kernels {', '.join(map(str, adaptive))} times as wide "
                f"{', '.join(f'{_percent(left):.1f} %' for left in adaptive.values())}. Report the lowest, and a strong "
                "attack's.",
            )
        )
    factor = min(adaptive, key=lambda f: int(adaptive[f].sum()), default=None)
    if factor is not None and _differ(trial.withstand_pgd, adaptive[factor], MORE_POINTS):
        found.append(
            Finding(
                "adaptive attack",
                f"PGD leaves {plain:.1f} %, and {_percent(adaptive[factor]):.1f} % with gradients of kernels {factor} times as "
                "wide: sharp kernels mask the gradient. Report the adaptive number.",
            )
        )
    return found


def _saturated_rows(trial: Trial) -> float:
    """Of the filters in the model; 0 if there are none."""
    if trial.filters is None:
        return 0.0
    images = trial.images[: trial.batch_size]
    for module in trial.model.modules():
        if isinstance(module, NormalizedModel):
            images = module.normalize(images)
    return saturation(trial.filters, images)


def _backward_of_wider(model: nn.Module, factor: float) -> nn.Module | None:
    wide = widened(model, factor)
    return None if wide is None else StraightThrough(model, wide).eval()


def sanity_checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel | float | None,
    seed: int = 0,
    batch_size: int = 64,
) -> Checks:
    """All checks on a few images, those the model gets right; no finding if none of the known signs shows.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        images: ``[B, C, H, W]``; some hundred are enough.
        labels: ``[B]``.
        threat: What the numbers to be believed were measured under; None if nothing was attacked, and outputs alone matter.
        seed: Of all draws.
        batch_size: Images at a time.
    """
    found = check_outputs(model, images[:batch_size])
    if threat is None:
        return Checks(["outputs"], len(images), found)
    right = torch.cat([is_correct(model, x, y) for x, y in zip(images.split(batch_size), labels.split(batch_size))])
    if not right.any():
        message = f"The model gets none of {len(images)} images right: nothing can be attacked, or labels are not the model's."
        return Checks(["outputs"], len(images), [*found, Finding("nothing to check", message)])
    trial = Trial(model, images[right], labels[right], ThreatModel.of(threat), seed, batch_size)
    robust, black_box = {"FGSM": trial.robust(FGSM(trial.threat)), "PGD": trial.withstand_pgd}, []
    if trial.threat.norm == LINF:
        robust["Square"], black_box = trial.robust(Square(trial.threat, 300, seed=seed)), ["Square"]
    few = list(zip(trial.images[:32].split(batch_size), trial.labels[:32].split(batch_size)))
    return Checks(
        _names_of_checks(trial),
        len(images),
        [
            *found,
            *check_gradients(model, few),
            *check_flags(robust, ["FGSM", "PGD"], black_box),
            *check_strength(trial),
            *check_saturation(trial),
        ],
    )


def _names_of_checks(trial: Trial) -> list[str]:
    """Not all fit every model and threat model."""
    names = ["outputs", "gradients", "FGSM beside PGD", "more steps", "scale of logits"]
    names += ["a black box"] * (trial.threat.norm == LINF) + ["large radii"] * (trial.threat.bounds is not None)
    names += ["wider kernels"] * (widened(trial.model, 1) is not None)
    return names + ["saturation"] * (trial.filters is not None)


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
        elif isinstance(module, Attention | DotProduct | Elliptical):
            module.scale = module.scale / factor**2
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # timm's fused path takes no scale
            changed = True
    return model if changed else None
