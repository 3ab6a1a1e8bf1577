"""Several attacks as one: each sample counts as fooled if any of them fools it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contract import check_batch
from ..threat import LINF, ThreatModel
from .apgd import APGDCE, APGDDLR, TargetedAPGD
from .base import Attack, AttackResult, Passes
from .black_box import Square


@dataclass(frozen=True)
class WorstOf:
    """The worst case, sample by sample, of several attacks under one threat model.

    Args:
        attacks: By name, in the order they run; each attacks only whom none before it fooled.

    Raises:
        ValueError: No attacks, or attacks under different threat models.
    """

    attacks: Mapping[str, Attack]

    def __post_init__(self) -> None:
        if not isinstance(self.attacks, Mapping) or any(not hasattr(attack, "threat") for attack in self.attacks.values()):
            raise TypeError(
                f"WorstOf: attacks must be a mapping of names to attacks, got {self.attacks!r}. Give {{'PGD': PGD(eps)}}."
            )
        if not self.attacks:
            raise ValueError("WorstOf: no attacks given; an ensemble needs one at least.")
        threats = {attack.threat for attack in self.attacks.values()}
        if len(threats) > 1:
            raise ValueError(f"WorstOf: attacks under different threat models {threats} have no common worst case.")

    @property
    def threat(self) -> ThreatModel:
        """Of all of them."""
        return next(iter(self.attacks.values())).threat

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        return self.threat.eps

    @property
    def passes(self) -> Passes:
        """Of a call, for a sample that withstands."""
        all_of_them = [attack.passes for attack in self.attacks.values()]
        return Passes(sum(p.forward for p in all_of_them), sum(p.backward for p in all_of_them))

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> AttackResult:
        """As `Attack`."""
        images = check_batch(model, images, labels, self.threat.bounds)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids.cpu()
        adversarial, success = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        by = torch.full((len(images),), -1, device=images.device)
        for number, attack in enumerate(self.attacks.values()):
            left = (~success).nonzero()[:, 0]
            if len(left) == 0:
                break
            found = attack(model, images[left], labels[left], ids[left.cpu()])
            adversarial[left], success[left] = found.adversarial, found.success
            moved = (found.adversarial != images[left]).flatten(1).any(1)  # the others were wrong as they were
            by[left] = torch.where(found.success & moved, number, -1)
        return AttackResult(adversarial, success, by)


def apgd_attacks(threat: ThreatModel | float, num_classes: int, steps: int = 100, seed: int = 0) -> dict[str, Attack]:
    """Return the Auto-PGD attacks that a number of classes allows (arXiv 2003.01690).

    APGD-CE always; targeted APGD from 4 classes on, APGD-DLR for 3.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        num_classes: Number of classes of the model.
        steps: Gradient steps per restart of each attack.
        seed: Seed of all draws.
    """
    attacks: dict[str, Attack] = {"APGD-CE": APGDCE(threat, steps, seed=seed)}
    if num_classes >= 4:
        attacks["APGD-T"] = TargetedAPGD(threat, steps, seed=seed)
    elif num_classes == 3:
        attacks["APGD-DLR"] = APGDDLR(threat, steps, seed=seed)
    return attacks


def strong_ensemble(threat: ThreatModel | float, num_classes: int, queries: int = 5000, seed: int = 0) -> WorstOf:
    """APGD-CE, targeted APGD (APGD-DLR for 3 classes, neither for 2), and Square under L-infinity.

    This is not AutoAttack: FAB is left out, under L2 Square too. Report it under its own name.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        num_classes: Of the model.
        queries: Of Square.
        seed: Of all draws.
    """
    attacks = apgd_attacks(threat, num_classes, seed=seed)
    if ThreatModel.of(threat).norm == LINF:
        attacks["Square"] = Square(threat, queries, seed=seed)
    return WorstOf(attacks)
