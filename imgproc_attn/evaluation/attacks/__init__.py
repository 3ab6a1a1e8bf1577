"""Adversarial attacks.

An attack is an object with settings; calling it with ``(model, images, labels)`` returns adversarial images and whether each
fools the model. The model takes images in [0, 1] (see `imgproc_attn.evaluation.NormalizedModel`), eps is in the same units
(8/255 is 8 gray levels), and what is found lies in the ball and in [0, 1], by construction, in the type of the images.
"""

from .apgd import APGDCE, APGDDLR, TargetedAPGD
from .auto_attack import AutoAttack
from .base import Attack, AttackResult, Passes, is_correct
from .black_box import SPSA, Square
from .ensemble import WorstOf, apgd_attacks, strong_ensemble
from .gradient import FGSM, MIFGSM, PGD

__all__ = [
    "APGDCE",
    "APGDDLR",
    "FGSM",
    "MIFGSM",
    "PGD",
    "SPSA",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Passes",
    "Square",
    "TargetedAPGD",
    "WorstOf",
    "apgd_attacks",
    "is_correct",
    "strong_ensemble",
]
