"""Sanity checks of robustness numbers: they detect models that only look robust.

Each check returns findings with an observation, its meaning and a remedy. A finding is a reason not to believe a number
yet. An empty list does not prove robustness. The checks follow AutoAttack (arXiv 2003.01690) and Athalye et al. (arXiv
1802.00420). One check is new: saturated filters, which pass no gradient to queries and keys.
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
from ..diagnostics.saturation import saturable_layers
from ..models import FilterVisionTransformer, from_timm
from .attacks import FGSM, PGD, Attack, Square, is_correct
from .bpda import widened, with_wider_gradients
from .contract import check_batch, check_logits
from .findings import Finding, SanityReport
from .gradient_checks import check_gradients
from .normalization import NormalizedModel
from .statistics import paired_interval, wilson_interval
from .threat import LINF, ThreatModel

__all__ = [
    "AttackProbe",
    "Scaled",
    "check_attack_order",
    "check_outputs",
    "check_repeats",
    "check_rows",
    "check_saturation",
    "check_strength",
    "sanity_checks",
]

# Thresholds in percentage points of accuracy over all possible images. For a finding, the 95 % interval of the difference on
# the checked images must exceed them, so that few images give no finding by chance.
POINTS = 0.5  # A weaker attack may beat a stronger one by this much.
MORE_POINTS = 2.0  # Five times the steps, or another form of the gradient, may gain this much.
BY_CHANCE = 2  # A random search may fool this many images before PGD does.
STEPWISE = ("PGD", "MI-FGSM", "APGD-CE", "APGD-DLR", "APGD-T")  # White-box attacks that no black-box attack should beat.
BLACK_BOX = ("Square", "SPSA")
WIDER = (2, 4, 8)  # Factors of the kernel width in the backward pass of the adaptive attack.


@dataclass
class AttackProbe:
    """Model, correctly classified images, and threat model, with the attacks that several checks share.

    Attributes:
        model: Maps images to logits, in evaluation mode.
        images: ``[B, C, H, W]`` images that the model classifies correctly.
        labels: ``[B]`` class indices.
        threat: Threat model.
        seed: Seed of all random numbers.
        batch_size: Number of images per forward pass.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int = 0
    batch_size: int = 64

    def robust(self, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """Return ``[B]`` bool, whether each sample withstands an attack. Default: an attack on ``self.model``."""
        parts = torch.arange(len(self.images)).split(self.batch_size)
        success = [attack(model or self.model, self.images[part], self.labels[part], part).success for part in parts]
        return ~torch.cat(success)

    @cached_property
    def withstand_pgd(self) -> Tensor:
        """Robustness ``[B]`` bool under PGD with 20 steps, which several checks compare with."""
        return self.robust(self.pgd)

    @property
    def pgd(self) -> PGD:
        """PGD with 20 steps under the threat model."""
        return PGD(self.threat, 20, seed=self.seed)

    @cached_property
    def withstand_long_pgd(self) -> Tensor:
        """Robustness ``[B]`` bool under PGD with 100 steps from each of two random starts."""
        return self.robust(PGD(self.threat, 100, restarts=2, seed=self.seed))

    @cached_property
    def filters(self) -> FilterVisionTransformer | None:
        """Filter backbone in the model, or a conversion of timm's vision transformer to one; None if there is neither."""
        for module in self.model.modules():
            if isinstance(module, FilterVisionTransformer):
                return module
            if isinstance(module, VisionTransformer):
                try:
                    return from_timm(module)
                except TypeError:  # Gated attention and other blocks cannot be converted.
                    return None
        return None


def _differ(more: Tensor, less: Tensor, points: float) -> bool:
    """Return whether the share of ``more`` exceeds that of ``less`` by ``points``, in the whole 95 % interval."""
    pairs = ((more, less), (more, ~less), (~more, less), (~more, ~less))
    return paired_interval(*(int((a & b).sum()) for a, b in pairs))[0] > points


def _exceeds(count: int, n: int, percent: float) -> bool:
    """Return whether a share exceeds ``percent`` in its whole 95 % interval, and ``count`` exceeds `BY_CHANCE`."""
    return count > BY_CHANCE and wilson_interval(count, n)[0] > percent


def _percent(flags: Tensor) -> float:
    return 100 * flags.double().mean().item()


@torch.no_grad()
def check_outputs(model: nn.Module, images: Tensor, axes: int = 2) -> list[Finding]:
    """Return findings of random outputs and of probabilities in place of logits.

    Args:
        model: Maps images to logits, in evaluation mode.
        images: ``[B, C, H, W]``.
        axes: 2 for logits ``[B, classes]``, 4 for ``[B, classes, height, width]``.
    """
    first, second = (check_logits(model(images), images, axes) for _ in range(2))
    findings = check_repeats(first, second)
    sums = first.sum(1)  # Below 1 if the model returns only some of the classes.
    if first.min() >= 0 and sums.min() > 0 and sums.max() <= 1 + 1e-4:
        findings.append(
            Finding(
                "probabilities",
                "Outputs are probabilities, not logits. Their loss has almost no gradient where the model is confident. Remove "
                "the softmax.",
            )
        )
    return findings


def check_repeats(first: Tensor, second: Tensor) -> list[Finding]:
    """Return a finding if the outputs of two passes over the same images differ."""
    if (first - second).abs().max() <= 1e-4 * first.abs().max():
        return []
    return [
        Finding(
            "random outputs",
            "Two passes over the same images differ, so gradients do not belong to the model that is attacked. Switch off "
            "random draws, or attack the average of many passes.",
        )
    ]


def check_attack_order(robust: Mapping[str, Tensor], white_box: Sequence[str], black_box: Sequence[str]) -> list[Finding]:
    """Return findings from comparing several attacks under one threat model.

    Args:
        robust: ``{attack: [n] bool}``, whether each sample withstands. FGSM and PGD must have these names.
        white_box: Names of the attacks that follow gradients.
        black_box: Names of the attacks that do not.
    """
    findings = []
    if {"FGSM", "PGD"} <= robust.keys() and _differ(robust["PGD"], robust["FGSM"], POINTS):
        findings.append(
            Finding(
                "PGD weaker than FGSM",
                f"PGD leaves {_percent(robust['PGD']):.1f} %, FGSM {_percent(robust['FGSM']):.1f} %. Many small steps find "
                "less than one large step, so the gradient misleads. Do not report the minimum of the two; look for masked "
                "gradients.",
            )
        )
    if white_box and black_box:
        missed = torch.stack([robust[name] for name in white_box]).all(0)
        missed &= ~torch.stack([robust[name] for name in black_box]).all(0)
        if _exceeds(int(missed.sum()), len(missed), POINTS):
            findings.append(
                Finding(
                    "black box beats white box",
                    f"{_percent(missed):.1f} % of the images withstand {', '.join(white_box)} but not {', '.join(black_box)}, "
                    "which see no gradient. The gradient is masked. Use an adaptive attack.",
                )
            )
    return findings


def check_rows(rows: Sequence[Mapping[str, Any]], correct: Mapping[str, Tensor]) -> list[Finding]:
    """Return findings from comparing all attacks of an evaluation: per radius, between radii, and within ensembles.

    Args:
        rows: Rows of conditions under attack, as in ``result.json``.
        correct: ``{condition: [n] bool}``, whether each sample is classified correctly.
    """
    findings = []
    at_one_radius: dict[str, dict[str, Tensor]] = {}
    for row in rows:
        attack, _, ball = row["name"].partition(" ")
        at_one_radius.setdefault(ball, {})[re.sub(r"-\d+$", "", attack)] = correct[
            row["name"]
        ]  # The names of the checks have no number of steps.
        findings += _check_ensemble(row)
    for ball, robust in at_one_radius.items():
        kinds = [[name for name in names if name in robust] for names in (STEPWISE, BLACK_BOX)]
        findings += [Finding(f.check, f"At {ball}: {f.message}") for f in check_attack_order(robust, *kinds)]
    for less, more in itertools.permutations([row for row in rows if row["name"].startswith(STEPWISE)], 2):
        alike = all(less[key] == more[key] for key in ("family", "norm", "space"))
        if alike and less["eps"] < more["eps"] and _differ(correct[more["name"]], correct[less["name"]], POINTS):
            findings.append(
                Finding(
                    "accuracy rises with eps",
                    f"{less['name']} leaves {_percent(correct[less['name']]):.1f} %, {more['name']} "
                    f"{_percent(correct[more['name']]):.1f} %, though its ball contains the smaller one. The attack is stuck. "
                    "Do not believe the larger number.",
                )
            )
    return findings


def _check_ensemble(row: Mapping[str, Any]) -> list[Finding]:
    """Return a finding per black-box attack in an ensemble that fooled many samples after the white-box attacks."""
    last = {name: count for name, count in row.get("fooled_by", {}).items() if name in BLACK_BOX}
    return [
        Finding(
            "black box beats white box",
            f"In {row['name']} {name} fools {count} of {row['n']} images that withstand APGD. Gradients are masked. Use an "
            "adaptive attack.",
        )
        for name, count in last.items()
        if _exceeds(count, row["n"], POINTS)
    ]


def check_strength(probe: AttackProbe) -> list[Finding]:
    """Return findings if PGD has not converged, fails at large radii, or depends on the scale of the logits."""
    findings, threat = [], probe.threat
    few, many = probe.withstand_pgd, probe.withstand_long_pgd
    if _differ(few, many, MORE_POINTS):
        findings.append(
            Finding(
                "more steps still help",
                f"PGD leaves {_percent(few):.1f} % after 20 steps and {_percent(many):.1f} % after 100 steps from 2 starts. It "
                "has not converged. Give it more steps, or use APGD.",
            )
        )
    if threat.bounds is not None:
        findings += _check_large_radii(probe)
    for factor in (0.1, 0.01):
        scaled = probe.robust(probe.pgd, Scaled(probe.model, factor).eval())
        if _differ(few, scaled, MORE_POINTS):
            findings.append(
                Finding(
                    "scale of the logits",
                    f"PGD leaves {_percent(few):.1f} %, and {_percent(scaled):.1f} % with logits multiplied by {factor:g}. The "
                    "loss is flat where the model is confident. Use APGD-DLR, whose objective does not depend on the scale.",
                )
            )
            break
    return findings


def _check_large_radii(probe: AttackProbe) -> list[Finding]:
    """Return a finding if accuracy stays high in large L-infinity balls, whatever the norm of the threat model."""
    own = probe.threat.norm == LINF
    radii = [radius for radius in (0.25, 0.5) if not own or radius > probe.threat.eps] or [1.0]
    grown = [probe.robust(PGD(radius, 40, seed=probe.seed)) for radius in radii]
    least = max(POINTS, 50 / probe.model(probe.images[:1]).shape[1])  # Half of the accuracy of guessing.
    falls = not any(_differ(b, a, POINTS) for a, b in itertools.pairwise([probe.withstand_pgd, *grown] if own else grown))
    if falls and not _exceeds(int(grown[-1].sum()), len(grown[-1]), least):
        return []
    shares = ", ".join(f"{_percent(flags):.1f} %" for flags in grown)
    return [
        Finding(
            "accuracy does not fall to 0",
            f"Accuracy under PGD at eps {', '.join(f'{radius:g}' for radius in radii)} is {shares}, "
            "though almost any image lies in such a ball. The attack is stuck. Look for masked gradients, and report Square "
            "beside PGD.",
        )
    ]


def check_saturation(probe: AttackProbe) -> list[Finding]:
    """Return findings of saturated filters and of an adaptive attack that fools more images.

    The adaptive attack uses kernels 2, 4 and 8 times as wide in the backward pass, which do not saturate. The forward pass is
    that of the model. Saturation is not checked for models of filters whose rows do not sum to 1.
    """
    findings, plain = [], _percent(probe.withstand_pgd)
    adaptive = {f: probe.robust(probe.pgd, wide) for f in WIDER if (wide := with_wider_gradients(probe.model, f))}
    share = _saturated_rows(probe)
    if share > SATURATED_SHARE:
        findings.append(
            Finding(
                "saturated filters",
                f"{100 * share:.1f} % of the filter's rows have a weight above 1 - 1e-4. Almost no gradient reaches their "
                f"queries and keys, so attacks that follow it fail there. PGD leaves {plain:.1f} %; with gradients of "
                f"kernels {', '.join(map(str, adaptive))} times as wide it leaves "
                f"{', '.join(f'{_percent(left):.1f} %' for left in adaptive.values())}. Report the lowest number, and that of "
                "a strong attack.",
            )
        )
    factor = min(adaptive, key=lambda f: int(adaptive[f].sum()), default=None)
    if factor is not None and _differ(probe.withstand_pgd, adaptive[factor], MORE_POINTS):
        findings.append(
            Finding(
                "adaptive attack",
                f"PGD leaves {plain:.1f} %, and {_percent(adaptive[factor]):.1f} % with gradients of kernels {factor} times as "
                "wide. Sharp kernels mask the gradient. Report the number of the adaptive attack.",
            )
        )
    return findings


def _has_saturation(probe: AttackProbe) -> bool:
    """Return whether saturation is defined for a filter of the model."""
    return probe.filters is not None and bool(saturable_layers(probe.filters))


def _saturated_rows(probe: AttackProbe) -> float:
    """Return the share of saturated rows of the filters in the model; 0 if there is none with rows that sum to 1."""
    if probe.filters is None or not _has_saturation(probe):
        return 0.0
    images = probe.images[: probe.batch_size]
    for module in probe.model.modules():
        if isinstance(module, NormalizedModel):
            images = module.normalize(images)
    return saturation(probe.filters, images)


def sanity_checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel | float | None,
    seed: int = 0,
    batch_size: int = 64,
) -> SanityReport:
    """Run all sanity checks on a few images, and report the known signs of a wrong robustness number.

    Attacks run only on images that the model classifies correctly.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        images: ``[B, C, H, W]``; some hundred are enough.
        labels: ``[B]`` class indices.
        threat: Threat model of the numbers to check; a number is the radius of the L-infinity ball on images in [0, 1]. None
            checks only the outputs, for evaluations without attacks.
        seed: Seed of all random numbers.
        batch_size: Number of images per forward pass.

    Returns:
        The names of the checks, the number of images, and the findings, which are empty if no known sign shows.

    Raises:
        TypeError: As `check_batch`.
        ValueError: As `check_batch`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> sanity_checks(model, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]), threat=None)
        SanityReport(done=['outputs'], images=4, findings=[])
    """
    images = check_batch(model, images, labels)
    findings = check_outputs(model, images[:batch_size])
    if threat is None:
        return SanityReport(["outputs"], len(images), findings)
    right = torch.cat([is_correct(model, x, y) for x, y in zip(images.split(batch_size), labels.split(batch_size))])
    if not right.any():
        message = (
            f"The model classifies none of {len(images)} images correctly, so nothing can be attacked. Check that the labels "
            "are those of the model."
        )
        return SanityReport(["outputs"], len(images), [*findings, Finding("nothing to check", message)])
    probe = AttackProbe(model, images[right], labels[right], ThreatModel.of(threat), seed, batch_size)
    robust, black_box = {"FGSM": probe.robust(FGSM(probe.threat)), "PGD": probe.withstand_pgd}, []
    robust["PGD of 100 steps"] = probe.withstand_long_pgd
    if probe.threat.norm == LINF:
        robust["Square"], black_box = probe.robust(Square(probe.threat, 300, seed=seed)), ["Square"]
    few = list(zip(probe.images[:32].split(batch_size), probe.labels[:32].split(batch_size)))
    return SanityReport(
        _names_of_checks(probe),
        len(images),
        [
            *findings,
            *check_gradients(model, few),
            *check_attack_order(robust, ["FGSM", "PGD", "PGD of 100 steps"], black_box),
            *check_strength(probe),
            *check_saturation(probe),
        ],
    )


def _names_of_checks(probe: AttackProbe) -> list[str]:
    """Return the names of the checks that suit the model and the threat model."""
    names = ["outputs", "gradients", "FGSM beside PGD", "more steps", "scale of logits"]
    names += ["a black box"] * (probe.threat.norm == LINF) + ["large radii"] * (probe.threat.bounds is not None)
    names += ["wider kernels"] * (widened(probe.model, 1) is not None)
    return names + ["saturation"] * _has_saturation(probe)


class Scaled(nn.Module):
    """Model whose logits are multiplied by a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)
