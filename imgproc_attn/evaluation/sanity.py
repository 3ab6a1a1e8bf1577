"""Sanity checks of robustness numbers: they detect models that only look robust.

Each check returns findings with an observation, its meaning and a remedy. A finding is a reason not to believe a number
yet. An empty list does not prove robustness. The checks follow AutoAttack (arXiv 2003.01690) and Athalye et al. (arXiv
1802.00420). One check is new: saturated filters, which pass no gradient to queries and keys.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..diagnostics import SATURATED_SHARE, saturation
from ..diagnostics.saturation import saturable_layers
from ..models import FilterVisionTransformer, from_timm
from .attacks import FGSM, PGD, Square
from .bpda import widened
from .contract import check_batch, check_logits
from .findings import Finding, SanityReport
from .gradient_checks import FLAGS, gradient_findings
from .normalization import NormalizedModel
from .probes import AttackProbe, GradientProbe, ScaledLogits, WiderKernels, answers
from .results_log import SampleResults, of_common_samples
from .samples import Batch
from .scorers import Scorer
from .statistics import paired_interval, wilson_interval
from .threat import LINF, ThreatModel

__all__ = [
    "attack_probes",
    "check_attack_order",
    "check_outputs",
    "check_repeats",
    "check_rows",
    "check_saturation",
    "check_strength",
    "judge",
    "sanity_checks",
    "saturated_rows",
]

# Thresholds in percentage points of accuracy over all possible images. For a finding, the 95 % interval of the difference on
# the checked images must exceed them, so that few images give no finding by chance.
POINTS = 0.5  # A weaker attack may beat a stronger one by this much.
MORE_POINTS = 2.0  # Five times the steps, or another form of the gradient, may gain this much.
BY_CHANCE = 2  # A random search may fool this many images before PGD does.
STEPWISE = ("PGD", "MI-FGSM", "APGD-CE", "APGD-DLR", "APGD-T")  # White-box attacks that no black-box attack should beat.
BLACK_BOX = ("Square", "SPSA")
SCALES = (0.1, 0.01)  # Factors of the logits.
WIDER = (2, 4, 8)  # Factors of the kernel width in the backward pass of the adaptive attack.
GRADIENTS, FEW, MANY, SQUARE = "gradients", "PGD", "PGD of 100 steps", "Square"  # names of probes


def attack_probes(model: nn.Module, threat: ThreatModel, seed: int = 0) -> dict[str, Scorer]:
    """Return the scorers of the sanity checks by name: of gradients, and of attacks, which `sanity_checks` compares.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        threat: Threat model.
        seed: Seed of all random numbers.
    """
    pgd = PGD(threat, 20, seed=seed)
    probes: dict[str, Scorer] = {
        GRADIENTS: GradientProbe(),
        "FGSM": AttackProbe(FGSM(threat)),
        FEW: AttackProbe(pgd),
        MANY: AttackProbe(PGD(threat, 100, restarts=2, seed=seed)),
    }
    if threat.norm == LINF:
        probes[SQUARE] = AttackProbe(Square(threat, 300, seed=seed))
    probes |= {_at(radius): AttackProbe(PGD(radius, 40, seed=seed)) for radius in _large_radii(threat)}
    probes |= {_scaled(factor): AttackProbe(pgd, ScaledLogits(factor)) for factor in SCALES}
    if widened(model, 1) is not None:
        probes |= {_wider(factor): AttackProbe(pgd, WiderKernels(factor)) for factor in WIDER}
    return probes


def _large_radii(threat: ThreatModel) -> list[float]:
    """Return radii of L-infinity balls in which almost any image lies; none for normalized tensors."""
    if threat.bounds is None:
        return []
    return [radius for radius in (0.25, 0.5) if threat.norm != LINF or radius > threat.eps] or [1.0]


def _at(radius: float) -> str:
    return f"PGD at eps {radius:g}"


def _scaled(factor: float) -> str:
    return f"PGD on logits times {factor:g}"


def _wider(factor: float) -> str:
    return f"PGD with kernels {factor:g} times as wide"


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


def check_strength(robust: Mapping[str, Tensor], threat: ThreatModel, num_classes: int) -> list[Finding]:
    """Return findings if PGD has not converged, fails at large radii, or depends on the scale of the logits.

    Args:
        robust: ``{name of `attack_probes`: [n] bool}``, whether each sample withstands.
        threat: Threat model of the probes.
        num_classes: Number of classes of the model.
    """
    findings, few, many = [], robust[FEW], robust[MANY]
    if _differ(few, many, MORE_POINTS):
        findings.append(
            Finding(
                "more steps still help",
                f"PGD leaves {_percent(few):.1f} % after 20 steps and {_percent(many):.1f} % after 100 steps from 2 starts. It "
                "has not converged. Give it more steps, or use APGD.",
            )
        )
    if threat.bounds is not None:
        findings += _check_large_radii(robust, threat, num_classes)
    factor = next((factor for factor in SCALES if _differ(few, robust[_scaled(factor)], MORE_POINTS)), None)
    if factor is not None:
        findings.append(
            Finding(
                "scale of the logits",
                f"PGD leaves {_percent(few):.1f} %, and {_percent(robust[_scaled(factor)]):.1f} % with logits multiplied by "
                f"{factor:g}. The loss is flat where the model is confident. Use APGD-DLR, whose objective does not depend on "
                "the scale.",
            )
        )
    return findings


def _check_large_radii(robust: Mapping[str, Tensor], threat: ThreatModel, num_classes: int) -> list[Finding]:
    """Return a finding if accuracy stays high in large L-infinity balls, whatever the norm of the threat model."""
    radii = _large_radii(threat)
    grown = [robust[_at(radius)] for radius in radii]
    least = max(POINTS, 50 / num_classes)  # Half of the accuracy of guessing.
    rising = [robust[FEW], *grown] if threat.norm == LINF else grown
    falls = not any(_differ(b, a, POINTS) for a, b in itertools.pairwise(rising))
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


def check_saturation(robust: Mapping[str, Tensor], saturated: float) -> list[Finding]:
    """Return findings of saturated filters and of an adaptive attack that fools more images.

    The adaptive attack uses kernels 2, 4 and 8 times as wide in the backward pass, which do not saturate. The forward pass is
    that of the model. Saturation is not checked for models of filters whose rows do not sum to 1.

    Args:
        robust: As in `check_strength`.
        saturated: Share of saturated rows of the filters.
    """
    findings, plain = [], _percent(robust[FEW])
    adaptive = {factor: robust[_wider(factor)] for factor in WIDER if _wider(factor) in robust}
    if saturated > SATURATED_SHARE:
        findings.append(
            Finding(
                "saturated filters",
                f"{100 * saturated:.1f} % of the filter's rows have a weight above 1 - 1e-4. Almost no gradient reaches their "
                f"queries and keys, so attacks that follow it fail there. PGD leaves {plain:.1f} %; with gradients of "
                f"kernels {', '.join(map(str, adaptive))} times as wide it leaves "
                f"{', '.join(f'{_percent(left):.1f} %' for left in adaptive.values())}. Report the lowest number, and that of "
                "a strong attack.",
            )
        )
    factor = min(adaptive, key=lambda f: int(adaptive[f].sum()), default=None)
    if factor is not None and _differ(robust[FEW], adaptive[factor], MORE_POINTS):
        findings.append(
            Finding(
                "adaptive attack",
                f"PGD leaves {plain:.1f} %, and {_percent(adaptive[factor]):.1f} % with gradients of kernels {factor} times as "
                "wide. Sharp kernels mask the gradient. Report the number of the adaptive attack.",
            )
        )
    return findings


def _filters_of(model: nn.Module) -> FilterVisionTransformer | None:
    """Return the filter backbone in a model, or a conversion of timm's vision transformer to one; None if there is neither."""
    for module in model.modules():
        if isinstance(module, FilterVisionTransformer):
            return module
        if isinstance(module, VisionTransformer):
            try:
                return from_timm(module)
            except TypeError:  # Gated attention and other blocks cannot be converted.
                return None
    return None


def saturated_rows(model: nn.Module, images: Tensor) -> float | None:
    """Return the share of saturated rows of the filters in a model; None if there is none with rows that sum to 1.

    Args:
        model: As in `sanity_checks`.
        images: ``[B, C, H, W]`` in [0, 1].
    """
    filters = _filters_of(model)
    if filters is None or not saturable_layers(filters):
        return None
    for module in model.modules():
        if isinstance(module, NormalizedModel):
            images = module.normalize(images)
    return saturation(filters, images)


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
    threat = None if threat is None else ThreatModel.of(threat)
    probes = {} if threat is None else attack_probes(model, threat, seed)
    batches = [(images[part], labels[part], part) for part in torch.arange(len(images)).split(batch_size)]
    return judge(model, batches, threat, {name: answers(probe, model, batches) for name, probe in probes.items()})


def judge(
    model: nn.Module, batches: Sequence[Batch], threat: ThreatModel | None, probed: Mapping[str, SampleResults]
) -> SanityReport:
    """Return the report of the sanity checks from the results of `attack_probes`.

    Args:
        model: As in `sanity_checks`.
        batches: Batches of the images.
        threat: Threat model of the probes; None to check only the outputs.
        probed: Results of the probes by name.
    """
    images, count = batches[0][0], sum(len(batch[0]) for batch in batches)
    findings = check_outputs(model, images)
    if threat is None:
        return SanityReport(["outputs"], count, findings)
    probed = of_common_samples(probed)
    attacked = {name: results for name, results in probed.items() if name != GRADIENTS}
    right = torch.stack([torch.tensor(results.column("right")) for results in attacked.values()]).bool().all(0)
    if not right.any():
        message = (
            f"The model classifies none of {count} images correctly, so nothing can be attacked. Check that the labels are "
            "those of the model."
        )
        return SanityReport(["outputs"], count, [*findings, Finding("nothing to check", message)])
    robust = {name: results.correct[right] for name, results in attacked.items()}
    saturated = saturated_rows(model, images)
    findings += gradient_findings({name: torch.tensor(probed[GRADIENTS].column(name))[right] for name in FLAGS})
    findings += check_attack_order(robust, ["FGSM", FEW, MANY], [SQUARE] * (SQUARE in robust))
    findings += check_strength(robust, threat, model(images[:1]).shape[1])
    findings += check_saturation(robust, saturated or 0.0)
    done = ["outputs", GRADIENTS, "FGSM beside PGD", "more steps", "scale of logits"]
    done += ["a black box"] * (SQUARE in robust) + ["large radii"] * (threat.bounds is not None)
    done += ["wider kernels"] * (_wider(WIDER[0]) in robust) + ["saturation"] * (saturated is not None)
    return SanityReport(done, count, findings)
