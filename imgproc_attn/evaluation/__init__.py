"""Evaluation: attacks, corruptions, and the protocol that counts with them."""

from .attacks import FGSM, PGD, AttackResult
from .corruptions import GaussianBlur, GaussianNoise
from .normalization import NormalizedModel
from .protocol import Evaluation, evaluate
from .statistics import PairedDifference, paired_difference

__all__ = [
    "FGSM",
    "PGD",
    "AttackResult",
    "Evaluation",
    "GaussianBlur",
    "GaussianNoise",
    "NormalizedModel",
    "PairedDifference",
    "evaluate",
    "paired_difference",
]
