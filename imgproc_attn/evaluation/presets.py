"""Protocols by name: which attacks, under which threat models.

The console command lists these names in its help. So attacks and norms are loaded when they are built, and importing this
module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import evaluation

if TYPE_CHECKING:
    from .scorers import AnyAttack
    from .threat import Norm, ThreatModel

Attacks = dict[str, "AnyAttack"]

# By name on the command line: the name in tables, and a function that loads the class.
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
    """``name`` as tables show it: with the number of steps of attacks that have one, ``PGD-20``."""
    return f"{name}-{attack.steps}" if hasattr(attack, "steps") else name


def radius_name(threat: ThreatModel) -> str:
    """``4/255`` for the L-infinity ball on images, ``L2 0.5``, ``normalized 1/255``, ``targeted 4/255``."""
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
    """Every attack of ``names`` under every threat model, named as in ``PGD-20 4/255``.

    Args:
        names: Of the catalog, or ``ensemble``, which is `strong_ensemble`, of attacks on labels.
        threats: Threat models.
        num_classes: Number of classes of the model; 0 for tasks without classes.
        seed: Of all draws.
        catalog: What there is.
        **settings: Of the attacks that have such a field; None is the attack's own default.

    Raises:
        ValueError: An unknown attack, a setting that none of them has, too few classes.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    there = [*catalog, *([ENSEMBLE] if catalog is ATTACKS else [])]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"There is no attack {unknown[0]!r}; there are {', '.join(there)}.")
    kinds = {name: catalog[name][1]() for name in names if name in catalog}
    for key in given:
        if not any(key in kind.__dataclass_fields__ for kind in kinds.values()):
            raise ValueError(f"None of {', '.join(names)} has a setting {key}; leave it out.")
    least = {"apgd-dlr": 3, "apgd-t": 4, "autoattack": 10}
    for name in names:
        if 0 < num_classes < least.get(name, 2):
            raise ValueError(
                f"{name} needs {least.get(name, 2)} classes, but the model has {num_classes}; other attacks need fewer."
            )
    radii = [radius_name(threat) for threat in threats]
    if len(set(radii)) < len(radii):
        raise ValueError(f"Of the radii {', '.join(radii)} some are the same; name each once.")
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
    """A protocol.

    Attributes:
        purpose: What it is, and what it is not.
        build: Its attacks, for a number of classes and a seed.
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
    """FGSM; PGD, 20 steps of 0.15 eps; SPSA."""

    def build(num_classes: int, seed: int) -> Attacks:
        attacks: Attacks = {}
        for levels in radii:
            threat = evaluation.ThreatModel.normalized(levels / 255)
            found = {
                "FGSM": evaluation.FGSM(threat),
                "PGD": evaluation.PGD(threat, 20, 0.15 * threat.eps, seed=seed),
                "SPSA": evaluation.SPSA(threat, 40, 128, seed=seed),
            }
            attacks |= {f"{attack_name(name, attack)} {radius_name(threat)}": attack for name, attack in found.items()}
        return attacks

    return build


_NOT_AUTOATTACK = "AutoAttack's protocol without {}: the ensemble here is not AutoAttack, whose numbers may be lower"
_LINF, _L2 = _NOT_AUTOATTACK.format("FAB"), _NOT_AUTOATTACK.format("FAB and Square")
PRESETS: Mapping[str, Preset] = {
    "grid": Preset("FGSM and PGD-20 at 0.5, 1, 2 and 4 gray levels: a first look", _grid),
    "robustbench-linf": Preset(f"ImageNet, L-infinity, 4/255. {_LINF}", _ensemble("Linf", 4 / 255)),
    "imagenet-l2": Preset(f"ImageNet, L2, 3.0, which RobustBench does not list. {_L2}", _ensemble("L2", 3.0)),
    "robustbench-cifar-linf": Preset(f"CIFAR, L-infinity, 8/255. {_LINF}", _ensemble("Linf", 8 / 255)),
    "robustbench-cifar-l2": Preset(f"CIFAR, L2, 0.5. {_L2}", _ensemble("L2", 0.5)),
    "twicing-paper": Preset(
        "FGSM, PGD and SPSA with the settings of arXiv 2503.00687's and 2406.13770's code, at 1/255 and 4/255 of NORMALIZED "
        "tensors, about 4.4 times weaker than gray levels; labels are the model's predictions; SPSA as in arXiv 1802.05666 "
        "finds more than cleverhans', which estimates its gradients at twice the image",
        _as_published((1, 4)),
    ),
    "elliptical-paper": Preset(
        "the same at 1/255 to 6/255 of NORMALIZED tensors, the grid of arXiv 2406.13770's scripts", _as_published(range(1, 7))
    ),
}
