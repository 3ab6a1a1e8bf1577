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
    AutoAttack,
    Square,
    TargetedAPGD,
    WorstOf,
    strong_ensemble,
)
from .corruptions import GaussianBlur, GaussianNoise
from .imagenet_c import COMMON, EXTRA, ImageNetC
from .normalization import NormalizedModel
from .results_log import SampleResults
from .robust_accuracy import BenchmarkResult, benchmark
from .sanity import sanity_checks
from .session import EvaluationSession, Runtime
from .specs import DatasetSpec, ModelSpec
from .statistics import PairedDifference, paired_difference
from .tensors import Evaluation, evaluate
from .threat import L2_NORM, LINF, ThreatModel

__all__ = [
    "APGDCE",
    "APGDDLR",
    "COMMON",
    "EXTRA",
    "FGSM",
    "L2_NORM",
    "LINF",
    "MIFGSM",
    "PGD",
    "SPSA",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BenchmarkResult",
    "DatasetSpec",
    "Evaluation",
    "EvaluationSession",
    "GaussianBlur",
    "GaussianNoise",
    "ImageNetC",
    "ModelSpec",
    "NormalizedModel",
    "PairedDifference",
    "Runtime",
    "SampleResults",
    "Square",
    "TargetedAPGD",
    "ThreatModel",
    "WorstOf",
    "benchmark",
    "evaluate",
    "paired_difference",
    "sanity_checks",
    "strong_ensemble",
]
