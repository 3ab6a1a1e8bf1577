"""Evaluation: attacks, corruptions, and the protocol that counts with them."""

from .attacks import (
    APGDCE,
    APGDDLR,
    FGSM,
    MIFGSM,
    PGD,
    SPSA,
    Attack,
    AttackResult,
    Square,
    TargetedAPGD,
    WorstOf,
    strong_ensemble,
)
from .corruptions import GaussianBlur, GaussianNoise
from .normalization import NormalizedModel
from .protocol import Evaluation, evaluate
from .sanity import sanity_checks
from .statistics import PairedDifference, paired_difference
from .threat import L2_NORM, LINF, ThreatModel

__all__ = [
    "APGDCE",
    "APGDDLR",
    "FGSM",
    "L2_NORM",
    "LINF",
    "MIFGSM",
    "PGD",
    "SPSA",
    "Attack",
    "AttackResult",
    "Evaluation",
    "GaussianBlur",
    "GaussianNoise",
    "NormalizedModel",
    "PairedDifference",
    "Square",
    "TargetedAPGD",
    "ThreatModel",
    "WorstOf",
    "evaluate",
    "paired_difference",
    "sanity_checks",
    "strong_ensemble",
]
