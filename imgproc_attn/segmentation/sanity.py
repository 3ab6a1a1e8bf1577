"""Is the robustness of a segmenter to be believed? What `imgproc_attn.evaluation.sanity` asks of classifiers, of pixels."""

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

WIDENING = 4  # times, in the backward pass of the adaptive attack

Pictures = Sequence[tuple[Tensor, Tensor]]


def pixel_checks(model: nn.Module, pictures: Pictures, attacks: Sequence[PixelAttack], side: int, seed: int) -> SanityReport:
    """All checks on a few pictures; no finding if none of the known signs shows.

    Args:
        model: Maps pictures in [0, 1] to logits a pixel, in evaluation mode.
        pictures: Batches of pictures and labels.
        attacks: Whose numbers are to be believed; without them outputs alone are looked at.
        side: Of the middle of each picture that is looked at, in pixels: whole ones may take too much memory.
        seed: Of all draws.
    """
    parts = [_middle(images, labels, side) for images, labels in pictures]
    kept = [(images, labels) for images, labels in parts if (labels != IGNORE_INDEX).any()]
    if not kept:
        nothing = Finding("nothing to check", "No picture that was to be looked at has a labeled pixel there.")
        return SanityReport([], 0, [nothing])
    done, found = ["outputs"], [finding for images, _ in kept for finding in check_outputs(model, images, 4)]
    if attacks:
        done += ["gradients"]
        found += check_gradients(model, kept, _summed_cross_entropy)
    largest = max((attack.threat for attack in attacks), key=lambda threat: threat.eps, default=None)
    asked = [attack for attack in attacks if attack.threat == largest and attack.passes.backward > 1]
    if asked:
        done += ["stronger attacks"]
        found += check_strength(model, kept, asked, seed)
    return SanityReport(done, len(kept), list({finding.check: finding for finding in found}.values()))


def check_strength(model: nn.Module, pictures: Pictures, attacks: Sequence[PixelAttack], seed: int) -> list[Finding]:
    """Whether what was asked for is near the worst case.

    A mean over pixels follows those that are wrong for sure, and models differ in what finds most. So: two other objectives in
    30 steps, logits a tenth as large, and the gradient of kernels four times as wide.

    Args:
        model: As in `pixel_checks`.
        pictures: Batches of pictures and labels.
        attacks: Of one threat model.
        seed: Of all draws.
    """
    threat = attacks[0].threat
    left = {type(attack).__name__.removeprefix("Pixel"): _right(model, model, attack, pictures) for attack in attacks}
    others: dict[str, tuple[nn.Module | None, PixelAttack]] = {
        "SegPGD of 30 steps": (model, SegPGD(threat, 30, seed=seed)),
        "MaskedPGD of 30 steps": (model, MaskedPGD(threat, 30, seed=seed)),
        "PGD on a tenth of the logits": (Scaled(model, 0.1).eval(), PixelPGD(threat, 20, seed=seed)),
        f"MaskedPGD with the gradient of kernels {WIDENING} times as wide": (
            with_wider_gradients(model, WIDENING),
            MaskedPGD(threat, 20, seed=seed),
        ),
    }
    stronger = {name: _right(model, asked, attack, pictures) for name, (asked, attack) in others.items() if asked is not None}
    name = min(stronger, key=lambda name: stronger[name])
    if min(left.values()) - stronger[name] <= MORE_POINTS:
        return []
    told = ", ".join(f"{attack} leaves {share:.1f} %" for attack, share in left.items())
    return [
        Finding(
            "a stronger attack",
            f"At eps {threat.eps:.3g} {told} of the pixels right, {name} {stronger[name]:.1f} %: what was asked for is no "
            "worst case. Report SegPGD and MaskedPGD too, in more steps, and the lowest.",
        )
    ]


def _right(model: nn.Module, asked: nn.Module, attack: PixelAttack, pictures: Pictures) -> float:
    """Percent of the labeled pixels that stay right, of a model under an attack that asks another one."""
    right = labeled = 0
    for images, labels in pictures:
        found = attack.worst(asked, images, labels, torch.arange(len(images)))
        right += int(right_pixels(model, found, labels).sum())
        labeled += int((labels != IGNORE_INDEX).sum())
    return 100 * right / labeled


def _middle(images: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """At most ``side x side`` pixels of pictures and their labels."""
    labels = F.interpolate(labels[:, None].double(), size=images.shape[-2:], mode="nearest-exact")[:, 0].long()
    top, left = (max(0, (length - side) // 2) for length in images.shape[-2:])
    rows, columns = slice(top, top + side), slice(left, left + side)
    return images[..., rows, columns], labels[..., rows, columns]


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B]``: a mean over pixels would make every gradient small."""
    return pixel_cross_entropy(logits, labels) * (labels != IGNORE_INDEX).flatten(1).sum(1)
