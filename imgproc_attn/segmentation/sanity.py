"""Sanity checks of a segmenter's robustness: the checks of `imgproc_attn.evaluation.sanity`, per pixel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.bpda import with_wider_gradients
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.gradient_checks import check_gradients
from ..evaluation.sanity import MORE_POINTS, Scaled, check_outputs
from .attacks import MaskedPGD, PixelAttack, PixelPGD, SegPGD, pixel_cross_entropy, right_pixels
from .metrics import IGNORE_INDEX

__all__ = ["check_strength", "pixel_checks"]

WIDENING = 4  # factor by which kernels are widened in the backward pass of the adaptive attack

Batches = Sequence[tuple[Tensor, Tensor]]


def pixel_checks(model: nn.Module, batches: Batches, attacks: Sequence[PixelAttack], side: int, seed: int) -> SanityReport:
    """Run all checks on a few images.

    Args:
        model: Model in evaluation mode that maps images in [0, 1] to one vector of logits per pixel.
        batches: Batches of images and labels.
        attacks: Attacks whose results are checked. Without attacks, only the outputs are checked.
        side: Side of the central crop that is checked, in pixels. Whole images may take too much memory.
        seed: Seed of all random numbers.

    Returns:
        A report with one finding per known sign of masked gradients; no findings if there is no such sign.
    """
    parts = [_middle(images, labels, side) for images, labels in batches]
    kept = [(images, labels) for images, labels in parts if (labels != IGNORE_INDEX).any()]
    if not kept:
        nothing = Finding("nothing to check", "None of the images to check has a labeled pixel in its central crop.")
        return SanityReport([], 0, [nothing])
    done, findings = ["outputs"], [finding for images, _ in kept for finding in check_outputs(model, images, 4)]
    if attacks:
        done += ["gradients"]
        findings += check_gradients(model, kept, _summed_cross_entropy)
    largest = max((attack.threat for attack in attacks), key=lambda threat: threat.eps, default=None)
    strongest = [attack for attack in attacks if attack.threat == largest and attack.passes.backward > 1]
    if strongest:
        done += ["stronger attacks"]
        findings += check_strength(model, kept, strongest, seed)
    return SanityReport(done, len(kept), list({finding.check: finding for finding in findings}.values()))


def check_strength(model: nn.Module, batches: Batches, attacks: Sequence[PixelAttack], seed: int) -> list[Finding]:
    """Check whether the attacks are close to the worst case.

    The mean loss over pixels is dominated by pixels that are already wrong, and the best objective depends on the model.
    Four other attacks are therefore tried:

    - two other objectives in 30 steps,
    - logits a tenth as large,
    - the gradient of kernels four times as wide.

    Args:
        model: As in `pixel_checks`.
        batches: Batches of images and labels.
        attacks: Attacks of one threat model.
        seed: Seed of all random numbers.

    Returns:
        One finding if another attack leaves clearly fewer pixels right, else an empty list.
    """
    threat = attacks[0].threat
    left = {type(attack).__name__.removeprefix("Pixel"): _right(model, model, attack, batches) for attack in attacks}
    others: dict[str, tuple[nn.Module | None, PixelAttack]] = {
        "SegPGD of 30 steps": (model, SegPGD(threat, 30, seed=seed)),
        "MaskedPGD of 30 steps": (model, MaskedPGD(threat, 30, seed=seed)),
        "PGD on a tenth of the logits": (Scaled(model, 0.1).eval(), PixelPGD(threat, 20, seed=seed)),
        f"MaskedPGD with the gradient of kernels {WIDENING} times as wide": (
            with_wider_gradients(model, WIDENING),
            MaskedPGD(threat, 20, seed=seed),
        ),
    }
    stronger = {
        name: _right(model, attacked, attack, batches) for name, (attacked, attack) in others.items() if attacked is not None
    }
    name = min(stronger, key=lambda name: stronger[name])
    if min(left.values()) - stronger[name] <= MORE_POINTS:
        return []
    shares = ", ".join(f"{attack} leaves {share:.1f} %" for attack, share in left.items())
    return [
        Finding(
            "a stronger attack",
            f"At eps {threat.eps:.3g} {shares} of the pixels right, but {name} leaves {stronger[name]:.1f} %: the attacks are "
            "not the worst case. Also run SegPGD and MaskedPGD with more steps, and report the lowest number.",
        )
    ]


def _right(model: nn.Module, attacked: nn.Module, attack: PixelAttack, batches: Batches) -> float:
    """Return the percentage of labeled pixels that ``model`` labels right under an attack on ``attacked``."""
    right = labeled = 0
    for images, labels in batches:
        perturbed = attack.worst(attacked, images, labels, torch.arange(len(images)))
        right += int(right_pixels(model, perturbed, labels).sum())
        labeled += int((labels != IGNORE_INDEX).sum())
    return 100 * right / labeled


def _middle(images: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the central ``side x side`` pixels, or fewer, of images and their labels."""
    labels = F.interpolate(labels[:, None].double(), size=images.shape[-2:], mode="nearest-exact")[:, 0].long()
    top, left = (max(0, (length - side) // 2) for length in images.shape[-2:])
    rows, columns = slice(top, top + side), slice(left, left + side)
    return images[..., rows, columns], labels[..., rows, columns]


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss ``[B]`` summed over pixels. A mean over pixels would make every gradient small."""
    return pixel_cross_entropy(logits, labels) * (labels != IGNORE_INDEX).flatten(1).sum(1)
