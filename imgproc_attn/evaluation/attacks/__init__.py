"""Adversarial attacks.

An attack is an object with settings. Call it with ``(model, images, labels)``. It returns adversarial images and whether each
one fools the model. The model takes images in [0, 1] (see `imgproc_attn.evaluation.NormalizedModel`). The radius eps is in the
same units: 8/255 is 8 gray levels. Adversarial images have the dtype of the images and lie exactly in the ball and in [0, 1].

Example:
    >>> import torch
    >>> from imgproc_attn.evaluation.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    >>> result = PGD(8 / 255, steps=5)(model, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
    >>> result.adversarial.shape, result.success.shape
    (torch.Size([4, 3, 2, 2]), torch.Size([4]))
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
