"""Attacks and protocols for segmentation models, by name. This module imports no torch, so that commands start quickly."""

from .. import evaluation, segmentation
from ..evaluation.presets import Attacks, Catalog, Preset, build_attacks

__all__ = ["PIXEL_ATTACKS", "PIXEL_PRESETS"]

PIXEL_ATTACKS: Catalog = {
    "fgsm": ("FGSM", lambda: segmentation.PixelFGSM),
    "pgd": ("PGD", lambda: segmentation.PixelPGD),
    "mifgsm": ("MI-FGSM", lambda: segmentation.PixelMIFGSM),
    "segpgd": ("SegPGD", lambda: segmentation.SegPGD),
    "maskedpgd": ("MaskedPGD", lambda: segmentation.MaskedPGD),
}


def _grid(num_classes: int, seed: int) -> Attacks:
    threats = [evaluation.ThreatModel(levels / 255) for levels in (0.5, 1, 2, 4)]
    return build_attacks(["fgsm", "pgd", "segpgd", "maskedpgd"], threats, num_classes, seed, PIXEL_ATTACKS)


PIXEL_PRESETS = {"grid": Preset("FGSM, PGD-20, SegPGD-20 and MaskedPGD-20 on pixels at 0.5, 1, 2 and 4 gray levels", _grid)}
