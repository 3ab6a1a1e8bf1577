"""Ensembles of attacks: a sample counts as fooled if any of the attacks fools it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contract import check_batch
from ..threat import LINF, ThreatModel
from .apgd import APGDCE, APGDDLR, TargetedAPGD
from .base import Attack, AttackResult, Passes
from .black_box import Square

__all__ = ["WorstOf", "apgd_attacks", "strong_ensemble"]


@dataclass(frozen=True)
class WorstOf:
    """Per-sample worst case of several attacks under one threat model.

    Args:
        attacks: Attacks by name, in the order they run. Each one runs only on samples that no earlier one fooled.

    Raises:
        TypeError: The argument is not a mapping of names to attacks.
        ValueError: There are no attacks, or they have different threat models.

    Example:
        >>> from imgproc_attn.evaluation import PGD, Square
        >>> WorstOf({"PGD": PGD(8 / 255), "Square": Square(8 / 255, queries=100)}).passes
        Passes(forward=124, backward=20)
    """

    attacks: Mapping[str, Attack]

    def __post_init__(self) -> None:
        if not isinstance(self.attacks, Mapping) or any(not hasattr(attack, "threat") for attack in self.attacks.values()):
            raise TypeError(
                f"WorstOf: attacks must be a mapping of names to attacks, got {self.attacks!r}. Give {{'PGD': PGD(eps)}}."
            )
        if not self.attacks:
            raise ValueError("WorstOf: attacks must hold at least one attack, got none. Give {'PGD': PGD(eps)}.")
        threats = {attack.threat for attack in self.attacks.values()}
        if len(threats) > 1:
            raise ValueError(
                f"WorstOf: attacks must share one threat model, got {threats}. Give one ensemble per threat model."
            )

    @property
    def threat(self) -> ThreatModel:
        """Threat model of all attacks."""
        return next(iter(self.attacks.values())).threat

    @property
    def eps(self) -> float:
        """Radius of the ball, in the units of the threat model."""
        return self.threat.eps

    @property
    def passes(self) -> Passes:
        """Maximum number of passes of one call, which robust samples need."""
        all_of_them = [attack.passes for attack in self.attacks.values()]
        return Passes(sum(p.forward for p in all_of_them), sum(p.backward for p in all_of_them))

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """Attack the images as `Attack` does, and return also the number of the attack that fooled each sample."""
        images = check_batch(model, images, labels, self.threat.bounds)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids.cpu()
        adversarial, success = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        by = torch.full((len(images),), -1, device=images.device)
        for number, attack in enumerate(self.attacks.values()):
            left = (~success).nonzero()[:, 0]
            if len(left) == 0:
                break
            result = attack(model, images[left], labels[left], ids[left.cpu()])
            adversarial[left], success[left] = result.adversarial, result.success
            moved = (result.adversarial != images[left]).flatten(1).any(1)  # Unmoved samples were wrong before the attack.
            by[left] = torch.where(result.success & moved, number, -1)
        return AttackResult(adversarial, success, by)


def apgd_attacks(threat: ThreatModel | float, num_classes: int, steps: int = 100, seed: int = 0) -> dict[str, Attack]:
    """Return the Auto-PGD attacks for a number of classes (arXiv 2003.01690).

    APGD-CE is always among them. Targeted APGD is added for 4 or more classes, APGD-DLR for 3.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        num_classes: Number of classes of the model.
        steps: Gradient steps per restart of each attack.
        seed: Seed of all random numbers.

    Example:
        >>> list(apgd_attacks(8 / 255, num_classes=10))
        ['APGD-CE', 'APGD-T']
    """
    attacks: dict[str, Attack] = {"APGD-CE": APGDCE(threat, steps, seed=seed)}
    if num_classes >= 4:
        attacks["APGD-T"] = TargetedAPGD(threat, steps, seed=seed)
    elif num_classes == 3:
        attacks["APGD-DLR"] = APGDDLR(threat, steps, seed=seed)
    return attacks


def strong_ensemble(threat: ThreatModel | float, num_classes: int, queries: int = 5000, seed: int = 0) -> WorstOf:
    """Return the ensemble of `apgd_attacks`, and of Square under L-infinity.

    The ensemble is not AutoAttack: it has no FAB, and under L2 no Square. Report it under its own name.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        num_classes: Number of classes of the model.
        queries: Queries of Square per sample.
        seed: Seed of all random numbers.

    Example:
        >>> list(strong_ensemble(8 / 255, num_classes=10).attacks)
        ['APGD-CE', 'APGD-T', 'Square']
    """
    attacks = apgd_attacks(threat, num_classes, seed=seed)
    if ThreatModel.of(threat).norm == LINF:
        attacks["Square"] = Square(threat, queries, seed=seed)
    return WorstOf(attacks)
