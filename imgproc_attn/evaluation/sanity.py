"""Is a robustness number to be believed? Checks that find what makes models look robust that are not.

Each check returns findings: what was seen, what it means, what to do. None is proof of robustness; a finding is a reason not to
believe a number yet. After auto-attack's checks (arXiv 2003.01690) and Athalye et al. (arXiv 1802.00420), with one of our own:
saturated filters, which pass no gradient to queries and keys.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..diagnostics import SATURATED_SHARE, saturation
from ..models import FilterVisionTransformer, from_timm
from .attacks import FGSM, PGD, Attack, Square, is_correct
from .bpda import widened, with_wider_gradients
from .contract import check_batch, check_logits
from .findings import Finding, SanityReport
from .gradient_checks import check_gradients
from .normalization import NormalizedModel
from .statistics import paired_interval, wilson_interval
from .threat import LINF, ThreatModel

# Points of accuracy, of all images there may be. The few that are checked must show more, beyond what chance does to so few.
POINTS = 0.5  # by which a weaker attack may beat a stronger one
MORE_POINTS = 2.0  # which five times the steps, or another form of the gradient, may still win
BY_CHANCE = 2  # images that a random search may find before PGD does
STEPWISE = ("PGD", "MI-FGSM", "APGD-CE", "APGD-DLR", "APGD-T")  # white-box attacks that no black box should beat
BLACK_BOX = ("Square", "SPSA")
WIDER = (2, 4, 8)  # times, in the backward pass of the adaptive attack


@dataclass
class AttackProbe:
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
    def withstand_long_pgd(self) -> Tensor:
        """``[B]`` bool, after PGD of 100 steps from each of two starts."""
        return self.robust(PGD(self.threat, 100, restarts=2, seed=self.seed))

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
    """Whether the share of ``more`` is larger by that, in all of the 95 % interval of the paired difference."""
    pairs = ((more, less), (more, ~less), (~more, less), (~more, ~less))
    return paired_interval(*(int((a & b).sum()) for a, b in pairs))[0] > points


def _exceeds(count: int, n: int, percent: float) -> bool:
    """Whether a share is larger than that, in all of its 95 % interval, and more than chance finds."""
    return count > BY_CHANCE and wilson_interval(count, n)[0] > percent


def _percent(flags: Tensor) -> float:
    return 100 * flags.double().mean().item()


@torch.no_grad()
def check_outputs(model: nn.Module, images: Tensor, axes: int = 2) -> list[Finding]:
    """Random outputs; probabilities in the place of logits, of as many ``axes`` as `check_logits` says."""
    first, second = (check_logits(model(images), images, axes) for _ in range(2))
    found = check_repeats(first, second)
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


def check_repeats(first: Tensor, second: Tensor) -> list[Finding]:
    """Compare the outputs of two passes over the same images."""
    if (first - second).abs().max() <= 1e-4 * first.abs().max():
        return []
    return [
        Finding(
            "random outputs",
            "Two passes over the same images differ: gradients are of other models than the one they attack. Switch off "
            "what draws random numbers, or attack the average of many passes.",
        )
    ]


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
        if _exceeds(int(missed.sum()), len(missed), POINTS):
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
        at_one_radius.setdefault(ball, {})[re.sub(r"-\d+$", "", attack)] = correct[row["name"]]  # PGD-20 is PGD
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
    last = {name: count for name, count in row.get("fooled_by", {}).items() if name in BLACK_BOX}
    return [
        Finding(
            "black box beats white box",
            f"In {row['name']} {name} fools {count} of {row['n']} images that withstand APGD: gradients are masked. Attack "
            "adaptively.",
        )
        for name, count in last.items()
        if _exceeds(count, row["n"], POINTS)
    ]


def check_strength(trial: AttackProbe) -> list[Finding]:
    """Whether PGD has converged, whether it wins in the end, and whether the scale of the logits holds it back."""
    found, threat = [], trial.threat
    few, many = trial.withstand_pgd, trial.withstand_long_pgd
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
        scaled = trial.robust(trial.pgd, Scaled(trial.model, factor).eval())
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


def _check_large_radii(trial: AttackProbe) -> list[Finding]:
    """In the L-infinity ball, whatever the threat's norm."""
    own = trial.threat.norm == LINF
    radii = [radius for radius in (0.25, 0.5) if not own or radius > trial.threat.eps] or [1.0]
    grown = [trial.robust(PGD(radius, 40, seed=trial.seed)) for radius in radii]
    least = max(POINTS, 50 / trial.model(trial.images[:1]).shape[1])  # half of what guessing gets right
    falls = not any(_differ(b, a, POINTS) for a, b in itertools.pairwise([trial.withstand_pgd, *grown] if own else grown))
    if falls and not _exceeds(int(grown[-1].sum()), len(grown[-1]), least):
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


def check_saturation(trial: AttackProbe) -> list[Finding]:
    """Saturated filters, and what an attack gains that widens the kernels in its backward pass (2, 4, 8 times).

    The forward pass stays the model's; only gradients are those of wider kernels, which are not flat.
    """
    found, plain = [], _percent(trial.withstand_pgd)
    adaptive = {f: trial.robust(trial.pgd, wide) for f in WIDER if (wide := with_wider_gradients(trial.model, f))}
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


def _saturated_rows(trial: AttackProbe) -> float:
    """Of the filters in the model; 0 if there are none."""
    if trial.filters is None:
        return 0.0
    images = trial.images[: trial.batch_size]
    for module in trial.model.modules():
        if isinstance(module, NormalizedModel):
            images = module.normalize(images)
    return saturation(trial.filters, images)


def sanity_checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel | float | None,
    seed: int = 0,
    batch_size: int = 64,
) -> SanityReport:
    """All checks on a few images, those the model gets right; no finding if none of the known signs shows.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        images: ``[B, C, H, W]``; some hundred are enough.
        labels: ``[B]``.
        threat: What the numbers to be believed were measured under; None if nothing was attacked, and outputs alone matter.
        seed: Of all draws.
        batch_size: Images at a time.
    """
    images = check_batch(model, images, labels)
    found = check_outputs(model, images[:batch_size])
    if threat is None:
        return SanityReport(["outputs"], len(images), found)
    right = torch.cat([is_correct(model, x, y) for x, y in zip(images.split(batch_size), labels.split(batch_size))])
    if not right.any():
        message = f"The model gets none of {len(images)} images right: nothing can be attacked, or labels are not the model's."
        return SanityReport(["outputs"], len(images), [*found, Finding("nothing to check", message)])
    trial = AttackProbe(model, images[right], labels[right], ThreatModel.of(threat), seed, batch_size)
    robust, black_box = {"FGSM": trial.robust(FGSM(trial.threat)), "PGD": trial.withstand_pgd}, []
    robust["PGD of 100 steps"] = trial.withstand_long_pgd
    if trial.threat.norm == LINF:
        robust["Square"], black_box = trial.robust(Square(trial.threat, 300, seed=seed)), ["Square"]
    few = list(zip(trial.images[:32].split(batch_size), trial.labels[:32].split(batch_size)))
    return SanityReport(
        _names_of_checks(trial),
        len(images),
        [
            *found,
            *check_gradients(model, few),
            *check_flags(robust, ["FGSM", "PGD", "PGD of 100 steps"], black_box),
            *check_strength(trial),
            *check_saturation(trial),
        ],
    )


def _names_of_checks(trial: AttackProbe) -> list[str]:
    """Not all fit every model and threat model."""
    names = ["outputs", "gradients", "FGSM beside PGD", "more steps", "scale of logits"]
    names += ["a black box"] * (trial.threat.norm == LINF) + ["large radii"] * (trial.threat.bounds is not None)
    names += ["wider kernels"] * (widened(trial.model, 1) is not None)
    return names + ["saturation"] * (trial.filters is not None)


class Scaled(nn.Module):
    """Logits times a number."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)
