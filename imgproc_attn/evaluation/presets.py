"""Presets: attack protocols by name, with their attacks and threat models.

The console command lists these names in its help. Therefore attacks and norms are loaded when they are built, and importing
this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import evaluation

if TYPE_CHECKING:
    from .scorers import AnyAttack
    from .threat import Norm, ThreatModel

__all__ = [
    "ATTACKS",
    "ENSEMBLE",
    "NORMS",
    "PRESETS",
    "Attacks",
    "Catalog",
    "Preset",
    "attack_name",
    "build_attacks",
    "radius_name",
]

Attacks = dict[str, "AnyAttack"]

# Maps a name on the command line to the name in tables and a function that loads the class.
Catalog = Mapping[str, tuple[str, Callable[[], type[Any]]]]
ATTACKS: Catalog = {
    "fgsm": ("FGSM", lambda: evaluation.FGSM),
    "pgd": ("PGD", lambda: evaluation.PGD),
    "mifgsm": ("MI-FGSM", lambda: evaluation.MIFGSM),
    "apgd-ce": ("APGD-CE", lambda: evaluation.APGDCE),
    "apgd-dlr": ("APGD-DLR", lambda: evaluation.APGDDLR),
    "apgd-t": ("APGD-T", lambda: evaluation.TargetedAPGD),
    "square": ("Square", lambda: evaluation.Square),
    "spsa": ("SPSA", lambda: evaluation.SPSA),
    "autoattack": ("AutoAttack", lambda: evaluation.AutoAttack),
}
ENSEMBLE = "ensemble"
NORMS: Mapping[str, Callable[[], Norm]] = {"Linf": lambda: evaluation.LINF, "L2": lambda: evaluation.L2_NORM}


def attack_name(name: str, attack: Any) -> str:
    """Return the name in tables: ``name``, with the number of steps if the attack has one, as in ``PGD-20``."""
    return f"{name}-{attack.steps}" if hasattr(attack, "steps") else name


def radius_name(threat: ThreatModel) -> str:
    """Return the radius in tables, such as ``4/255`` (L-infinity), ``L2 0.5``, ``normalized 1/255``, ``targeted 4/255``.

    Example:
        >>> radius_name(evaluation.ThreatModel(4 / 255))
        '4/255'
    """
    text = f"{round(threat.eps * 255, 4):g}/255" if threat.norm == evaluation.LINF else f"L2 {threat.eps:g}"
    return " ".join(["normalized"] * (threat.bounds is None) + ["targeted"] * threat.targeted + [text])


def build_attacks(
    names: Sequence[str],
    threats: Sequence[ThreatModel],
    num_classes: int,
    seed: int = 0,
    catalog: Catalog = ATTACKS,
    **settings: Any,
) -> Attacks:
    """Return each attack of ``names`` under each threat model, with names such as ``PGD-20 4/255``.

    Args:
        names: Names in the catalog. With the default catalog also ``ensemble``, which is `strong_ensemble`.
        threats: Threat models.
        num_classes: Number of classes of the model; 0 for tasks without classes.
        seed: Seed of all random numbers.
        catalog: Attacks by name.
        **settings: Settings for all attacks that have such a field. None keeps the default of the attack.

    Raises:
        ValueError: An attack is unknown, no attack has a setting, the classes are too few, or two radii are equal.

    Example:
        >>> list(build_attacks(["fgsm", "pgd"], [evaluation.ThreatModel(4 / 255)], num_classes=10, steps=5))
        ['FGSM 4/255', 'PGD-5 4/255']
    """
    given = {key: value for key, value in settings.items() if value is not None}
    available = [*catalog, *([ENSEMBLE] if catalog is ATTACKS else [])]
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"Attacks must be among {', '.join(available)}, got {unknown[0]!r}. Check the spelling.")
    kinds = {name: catalog[name][1]() for name in names if name in catalog}
    for key in given:
        if not any(key in kind.__dataclass_fields__ for kind in kinds.values()):
            raise ValueError(f"Settings must belong to one of the attacks {', '.join(names)}, got {key}. Leave it out.")
    least = {"apgd-dlr": 3, "apgd-t": 4, "autoattack": 10}
    for name in names:
        if 0 < num_classes < least.get(name, 2):
            raise ValueError(
                f"{name}: the model must have at least {least.get(name, 2)} classes, got {num_classes}. Use another attack."
            )
    radii = [radius_name(threat) for threat in threats]
    if len(set(radii)) < len(radii):
        raise ValueError(f"Radii must differ, got {', '.join(radii)}. Name each radius once.")
    attacks: Attacks = {}
    for name in names:
        for threat in threats:
            if name == ENSEMBLE:
                attacks[f"ensemble {radius_name(threat)}"] = evaluation.strong_ensemble(threat, num_classes, seed=seed)
                continue
            own = {key: value for key, value in {**given, "seed": seed}.items() if key in kinds[name].__dataclass_fields__}
            attack = kinds[name](threat, **own)
            attacks[f"{attack_name(catalog[name][0], attack)} {radius_name(threat)}"] = attack
    return attacks


@dataclass(frozen=True)
class Preset:
    """Attack protocol with a name.

    Attributes:
        purpose: Description of the protocol and of its limits.
        build: Function that returns the attacks for a number of classes and a seed.
    """

    purpose: str
    build: Callable[[int, int], Attacks]


def _ensemble(norm: str, eps: float) -> Callable[[int, int], Attacks]:
    def build(num_classes: int, seed: int) -> Attacks:
        return build_attacks([ENSEMBLE], [evaluation.ThreatModel(eps, NORMS[norm]())], num_classes, seed)

    return build


def _grid(num_classes: int, seed: int) -> Attacks:
    threats = [evaluation.ThreatModel(levels / 255) for levels in (0.5, 1, 2, 4)]
    return build_attacks(["fgsm", "pgd"], threats, num_classes, seed)


def _as_published(radii: Sequence[int]) -> Callable[[int, int], Attacks]:
    """Return a function that builds FGSM, PGD (20 steps of 0.15 eps) and SPSA on normalized tensors."""

    def build(num_classes: int, seed: int) -> Attacks:
        attacks: Attacks = {}
        for levels in radii:
            threat = evaluation.ThreatModel.normalized(levels / 255)
            kinds = {
                "FGSM": evaluation.FGSM(threat),
                "PGD": evaluation.PGD(threat, 20, 0.15 * threat.eps, seed=seed),
                "SPSA": evaluation.SPSA(threat, 40, 128, seed=seed),
            }
            attacks |= {f"{attack_name(name, attack)} {radius_name(threat)}": attack for name, attack in kinds.items()}
        return attacks

    return build


_NOT_AUTOATTACK = "AutoAttack's protocol without {}. The ensemble is not AutoAttack, whose accuracies may be lower"
_LINF, _L2 = _NOT_AUTOATTACK.format("FAB"), _NOT_AUTOATTACK.format("FAB and Square")
PRESETS: Mapping[str, Preset] = {
    "grid": Preset("FGSM and PGD-20 at 0.5, 1, 2 and 4 gray levels, for a first look", _grid),
    "robustbench-linf": Preset(f"ImageNet, L-infinity, 4/255. {_LINF}", _ensemble("Linf", 4 / 255)),
    "imagenet-l2": Preset(f"ImageNet, L2, 3.0, which RobustBench does not list. {_L2}", _ensemble("L2", 3.0)),
    "robustbench-cifar-linf": Preset(f"CIFAR, L-infinity, 8/255. {_LINF}", _ensemble("Linf", 8 / 255)),
    "robustbench-cifar-l2": Preset(f"CIFAR, L2, 0.5. {_L2}", _ensemble("L2", 0.5)),
    "twicing-paper": Preset(
        "FGSM, PGD and SPSA with the settings of the code of arXiv 2503.00687 and 2406.13770, at 1/255 and 4/255 of NORMALIZED "
        "tensors, with ImageNet's statistics about 4.4 times weaker than gray levels. Labels are the model's predictions. SPSA "
        "is that of arXiv 1802.05666; it finds more than SPSA of cleverhans, which estimates its gradients at twice the image",
        _as_published((1, 4)),
    ),
    "elliptical-paper": Preset(
        "as twicing-paper, at 1/255 to 6/255 of NORMALIZED tensors, the grid of the scripts of arXiv 2406.13770",
        _as_published(range(1, 7)),
    ),
}
