"""Sanity checks of a segmenter's robustness: the checks of `imgproc_attn.evaluation.sanity`, per pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.attacks import Passes
from ..evaluation.bpda import widened
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.gradient_checks import FLAGS, GRADIENT_PASSES, gradient_findings, gradient_flags
from ..evaluation.probes import UNCHANGED, ScaledLogits, Variant, WiderKernels
from ..evaluation.results_log import SampleResults, of_common_samples
from ..evaluation.sanity import GRADIENTS, MORE_POINTS, check_outputs
from ..evaluation.scorers import BatchResult, Scorer
from .attacks import MaskedPGD, PixelAttack, PixelPGD, SegPGD, pixel_cross_entropy, right_pixels
from .inference import SlidingWindow
from .metrics import IGNORE_INDEX

__all__ = ["Crop", "PixelGradientProbe", "PixelProbe", "check_strength", "judge_pixels", "pixel_probes"]

WIDENING = 4  # factor by which kernels are widened in the backward pass of the adaptive attack
OWN_ATTACK = "own "  # beginning of the names of the attacks whose results are checked


@dataclass(frozen=True)
class Crop:
    """Part of an image that the sanity checks see. Whole images may take too much memory.

    Args:
        side: Side of the central crop in pixels.
        windows: Sliding windows of the model.
    """

    side: int
    windows: SlidingWindow

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the central ``side x side`` pixels, or fewer, of images and their labels."""
        labels = F.interpolate(labels[:, None].double(), size=images.shape[-2:], mode="nearest-exact")[:, 0].long()
        top, left = (max(0, (length - self.side) // 2) for length in images.shape[-2:])
        rows, columns = slice(top, top + self.side), slice(left, left + self.side)
        return images[..., rows, columns], labels[..., rows, columns]


@dataclass(frozen=True)
class PixelProbe(Scorer):
    """Number of pixels that a model labels right under an attack on a variant of it, beside the number of labeled pixels.

    Args:
        crop: Part of the images.
        attack: Attack on pixels.
        variant: Model that the attack sees.
    """

    crop: Crop
    attack: PixelAttack
    variant: Variant = UNCHANGED

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(forward + 1, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        model = self.crop.windows.over(model)
        images, labels = self.crop(images, labels)
        labeled = _labeled(labels)
        right = torch.zeros_like(labeled)
        if labeled.any():
            perturbed = self.attack.worst(self.variant(model), images, labels, ids.cpu())
            right = right_pixels(model, perturbed, labels)
        return BatchResult(images, {"right": right, "labeled": labeled})


@dataclass(frozen=True)
class PixelGradientProbe(Scorer):
    """Columns of `gradient_flags`, of the summed loss of pixels, beside the number of labeled pixels.

    Args:
        crop: Part of the images.
    """

    crop: Crop

    @property
    def passes(self) -> Passes:
        return GRADIENT_PASSES

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        images, labels = self.crop(images, labels)
        flags = gradient_flags(self.crop.windows.over(model), images, labels, _summed_cross_entropy)
        return BatchResult(images, {**flags, "labeled": _labeled(labels)})


def pixel_probes(model: nn.Module, attacks: Sequence[PixelAttack], crop: Crop, seed: int) -> dict[str, Scorer]:
    """Return the scorers of the sanity checks by name: of gradients, of the given attacks, and of stronger ones.

    The mean loss over pixels is dominated by pixels that are already wrong, and the best objective depends on the model.
    Four other attacks are therefore tried at the largest radius:

    - two other objectives in 30 steps,
    - logits a tenth as large,
    - the gradient of kernels four times as wide.

    Args:
        model: Model in evaluation mode that maps images in [0, 1] to one vector of logits per pixel.
        attacks: Attacks whose results are checked. Without attacks, there are no probes.
        crop: Part of the images that is checked.
        seed: Seed of all random numbers.
    """
    if not attacks:
        return {}
    probes: dict[str, Scorer] = {GRADIENTS: PixelGradientProbe(crop)}
    largest = max((attack.threat for attack in attacks), key=lambda threat: threat.eps)
    strongest = [attack for attack in attacks if attack.threat == largest and attack.passes.backward > 1]
    if not strongest:
        return probes
    probes |= {OWN_ATTACK + type(attack).__name__.removeprefix("Pixel"): PixelProbe(crop, attack) for attack in strongest}
    probes |= {
        "SegPGD of 30 steps": PixelProbe(crop, SegPGD(largest, 30, seed=seed)),
        "MaskedPGD of 30 steps": PixelProbe(crop, MaskedPGD(largest, 30, seed=seed)),
        "PGD on a tenth of the logits": PixelProbe(crop, PixelPGD(largest, 20, seed=seed), ScaledLogits(0.1)),
    }
    if widened(model, 1) is not None:
        wider = f"MaskedPGD with the gradient of kernels {WIDENING} times as wide"
        probes[wider] = PixelProbe(crop, MaskedPGD(largest, 20, seed=seed), WiderKernels(WIDENING))
    return probes


def judge_pixels(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    attacks: Sequence[PixelAttack],
    crop: Crop,
    probed: Mapping[str, SampleResults],
) -> SanityReport:
    """Return the report of the sanity checks from the results of `pixel_probes`.

    Args:
        model: As in `pixel_probes`.
        batches: Batches of images and labels.
        attacks: As in `pixel_probes`.
        crop: As in `pixel_probes`.
        probed: Results of the probes by name.

    Returns:
        A report with one finding per known sign of masked gradients; no findings if there is no such sign.
    """
    parts = [crop(images, labels) for images, labels in batches]
    kept = [images for images, labels in parts if _labeled(labels).any()]
    if not kept:
        nothing = Finding("nothing to check", "None of the images to check has a labeled pixel in its central crop.")
        return SanityReport([], 0, [nothing])
    seen = crop.windows.over(model)
    done, findings = ["outputs"], [finding for images in kept for finding in check_outputs(seen, images, 4)]
    probed = of_common_samples(probed)
    if probed:
        done += [GRADIENTS]
        labeled = torch.tensor(probed[GRADIENTS].column("labeled")) > 0
        findings += gradient_findings({name: torch.tensor(probed[GRADIENTS].column(name))[labeled] for name in FLAGS})
    shares = {name: _share_of_right(results) for name, results in probed.items() if name != GRADIENTS}
    if shares:
        done += ["stronger attacks"]
        findings += check_strength(shares, max(attack.threat.eps for attack in attacks))
    return SanityReport(done, len(kept), list({finding.check: finding for finding in findings}.values()))


def check_strength(shares: Mapping[str, float], eps: float) -> list[Finding]:
    """Return one finding if another attack leaves clearly fewer pixels right than the given attacks, else an empty list.

    Args:
        shares: Percentage of right pixels under the attacks of `pixel_probes`, by name.
        eps: Radius of the attacks.
    """
    left = {name.removeprefix(OWN_ATTACK): share for name, share in shares.items() if name.startswith(OWN_ATTACK)}
    stronger = {name: share for name, share in shares.items() if not name.startswith(OWN_ATTACK)}
    name = min(stronger, key=lambda name: stronger[name])
    if min(left.values()) - stronger[name] <= MORE_POINTS:
        return []
    numbers = ", ".join(f"{attack} leaves {share:.1f} %" for attack, share in left.items())
    return [
        Finding(
            "a stronger attack",
            f"At eps {eps:.3g} {numbers} of the pixels right, but {name} leaves {stronger[name]:.1f} %: the attacks are "
            "not the worst case. Also run SegPGD and MaskedPGD with more steps, and report the lowest number.",
        )
    ]


def _share_of_right(results: SampleResults) -> float:
    """Return the percentage of labeled pixels that are right."""
    return 100 * sum(results.column("right")) / sum(results.column("labeled"))


def _labeled(labels: Tensor) -> Tensor:
    """Return the number ``[B]`` of labeled pixels."""
    return (labels != IGNORE_INDEX).flatten(1).sum(1)


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss ``[B]`` summed over pixels. A mean over pixels would make every gradient small."""
    return pixel_cross_entropy(logits, labels) * _labeled(labels)
