"""Protocols by name: which attacks, under which threat models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .attacks import APGDCE, APGDDLR, FGSM, MIFGSM, PGD, SPSA, Square, TargetedAPGD, strong_ensemble
from .conditions import SampleAttack
from .threat import L2_NORM, LINF, Norm, ThreatModel

Attacks = dict[str, SampleAttack]

# By the name of the command line: their name in tables.
Catalogue = Mapping[str, tuple[str, type[Any]]]
ATTACKS: Catalogue = {
    "fgsm": ("FGSM", FGSM),
    "pgd": ("PGD", PGD),
    "mifgsm": ("MI-FGSM", MIFGSM),
    "apgd-ce": ("APGD-CE", APGDCE),
    "apgd-dlr": ("APGD-DLR", APGDDLR),
    "apgd-t": ("APGD-T", TargetedAPGD),
    "square": ("Square", Square),
    "spsa": ("SPSA", SPSA),
}
ENSEMBLE = "ensemble"
NORMS: Mapping[str, Norm] = {"Linf": LINF, "L2": L2_NORM}


def radius_name(threat: ThreatModel) -> str:
    """``4/255`` for the L-infinity ball on images, ``L2 0.5``, ``normalized 1/255``, ``targeted 4/255``."""
    text = f"{round(threat.eps * 255, 4):g}/255" if threat.norm == LINF else f"L2 {threat.eps:g}"
    return " ".join(["normalized"] * (threat.bounds is None) + ["targeted"] * threat.targeted + [text])


def build_attacks(
    names: Sequence[str],
    threats: Sequence[ThreatModel],
    num_classes: int,
    seed: int = 0,
    catalogue: Catalogue = ATTACKS,
    **settings: Any,
) -> Attacks:
    """Every attack of ``names`` under every threat model, named as in ``PGD 4/255``.

    Args:
        names: Of the catalogue, or ``ensemble``, which is `strong_ensemble`, of attacks on labels.
        threats: Threat models.
        num_classes: Of the model.
        seed: Of all draws.
        catalogue: What there is.
        **settings: Of the attacks that have such a field; None is the attack's own default.

    Raises:
        ValueError: An unknown attack, a setting that none of them has, too few classes.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    there = [*catalogue, *([ENSEMBLE] if catalogue is ATTACKS else [])]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"There is no attack {unknown[0]!r}; there are {', '.join(there)}.")
    fields = {name: catalogue[name][1].__dataclass_fields__ for name in names if name in catalogue}
    for key in given:
        if not any(key in has for has in fields.values()):
            raise ValueError(f"None of {', '.join(names)} has a setting {key}; leave it out.")
    least = {"apgd-dlr": 3, "apgd-t": 4}
    for name in names:
        if num_classes < least.get(name, 2):
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
                attacks[f"ensemble {radius_name(threat)}"] = strong_ensemble(threat, num_classes, seed=seed)
                continue
            own = {key: value for key, value in {**given, "seed": seed}.items() if key in fields[name]}
            attacks[f"{catalogue[name][0]} {radius_name(threat)}"] = catalogue[name][1](threat, **own)
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


def _ensemble(threat: ThreatModel) -> Callable[[int, int], Attacks]:
    return lambda num_classes, seed: build_attacks([ENSEMBLE], [threat], num_classes, seed)


def _grid(num_classes: int, seed: int) -> Attacks:
    threats = [ThreatModel(levels / 255) for levels in (0.5, 1, 2, 4)]
    return build_attacks(["fgsm", "pgd"], threats, num_classes, seed)


def _as_published(radii: Sequence[int]) -> Callable[[int, int], Attacks]:
    """FGSM; PGD, 20 steps of 0.15 eps; SPSA."""

    def build(num_classes: int, seed: int) -> Attacks:
        attacks: Attacks = {}
        for levels in radii:
            threat = ThreatModel.normalized(levels / 255)
            attacks[f"FGSM {radius_name(threat)}"] = FGSM(threat)
            attacks[f"PGD {radius_name(threat)}"] = PGD(threat, 20, 0.15 * threat.eps, seed=seed)
            attacks[f"SPSA {radius_name(threat)}"] = SPSA(threat, 40, 128, seed=seed)
        return attacks

    return build


_NOT_AUTOATTACK = "AutoAttack's protocol without {}: the ensemble here is not AutoAttack, whose numbers may be lower"
_LINF, _L2 = _NOT_AUTOATTACK.format("FAB"), _NOT_AUTOATTACK.format("FAB and Square")
PRESETS: Mapping[str, Preset] = {
    "grid": Preset("FGSM and PGD-20 at 0.5, 1, 2 and 4 grey levels: a first look", _grid),
    "robustbench-linf": Preset(f"ImageNet, L-infinity, 4/255. {_LINF}", _ensemble(ThreatModel(4 / 255))),
    "imagenet-l2": Preset(f"ImageNet, L2, 3.0, which RobustBench does not list. {_L2}", _ensemble(ThreatModel(3.0, L2_NORM))),
    "robustbench-cifar-linf": Preset(f"CIFAR, L-infinity, 8/255. {_LINF}", _ensemble(ThreatModel(8 / 255))),
    "robustbench-cifar-l2": Preset(f"CIFAR, L2, 0.5. {_L2}", _ensemble(ThreatModel(0.5, L2_NORM))),
    "twicing-paper": Preset(
        "FGSM, PGD and SPSA with the settings of arXiv 2503.00687's and 2406.13770's code, at 1/255 and 4/255 of NORMALISED "
        "tensors, about 4.4 times weaker than grey levels; labels are the model's predictions; SPSA as in arXiv 1802.05666 "
        "finds more than cleverhans', which estimates its gradients at twice the image",
        _as_published((1, 4)),
    ),
    "elliptical-paper": Preset(
        "the same at 1/255 to 6/255 of NORMALISED tensors, the grid of arXiv 2406.13770's scripts", _as_published(range(1, 7))
    ),
}
