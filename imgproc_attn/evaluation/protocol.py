"""The protocol: every number is a count of per-sample flags."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..utils.checks import check_whole
from .attacks import is_correct
from .conditions import SampleAttack, judge_of
from .contract import check_batch, check_corrupted
from .threat import ThreatModel

Corruption = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Evaluation:
    """Which samples a model classifies correctly, by condition.

    Attributes:
        correct: ``{condition: [n] bool}``; ``"clean"`` is always there. Under attack: correct on the clean
            image and not fooled; under attacks on normalized tensors, as published: the label is predicted in the end.
        largest_perturbation: ``{attack: distance of an adversarial image}``, in the norm of its threat model.
    """

    correct: dict[str, Tensor]
    largest_perturbation: dict[str, float] = field(default_factory=dict)

    def accuracy(self, condition: str = "clean") -> float:
        """Share of correct samples, in percent."""
        return 100 * self.correct[condition].double().mean().item()

    @property
    def accuracies(self) -> dict[str, float]:
        """All of them."""
        return {condition: self.accuracy(condition) for condition in self.correct}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, SampleAttack] | None = None,
    corruptions: Mapping[str, Corruption] | None = None,
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Clean accuracy, accuracy under attack, accuracy on corrupted images.

    Args:
        model: Maps images in [0, 1] to logits; in eval mode.
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n]``.
        attacks: By name; by their threat models on images, with targets, or as the papers have it (`judge_of`).
        corruptions: By name: functions of images and their numbers ``[B]``, which return one image in [0, 1] for each.
        batch_size: Images at a time. No number depends on it, up to rounding.
        progress: Called with the name of each condition when it is done.

    Raises:
        TypeError: Attacks or corruptions that are none, or what `check_batch` and `check_logits` refuse so.
        ValueError: As `check_batch` and `check_logits`; no images, for which no accuracy exists; two conditions of one name; or
            a corruption that leaves [0, 1], the number or the size of the images.
        FloatingPointError: Logits or gradients that are not finite.
    """
    images = check_batch(model, images, labels)
    if check_whole("evaluate: batch_size", batch_size) < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}. Give the number of images at a time.")
    _check_kinds(attacks or {}, corruptions or {})
    if len(images) == 0:
        raise ValueError("evaluate: 0 images given; an accuracy needs at least one.")
    names = ["clean", *(attacks or {}), *(corruptions or {})]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"evaluate: {twice!r} names two conditions, of which one would be lost; rename one.")
    done = progress or (lambda condition: None)
    ids = torch.arange(len(images)).split(batch_size)

    result = Evaluation({"clean": torch.cat([is_correct(model, images[part], labels[part]) for part in ids]).cpu()})
    done("clean")
    for name, attack in (attacks or {}).items():
        flags, largest, judge = [], 0.0, judge_of(attack)
        for part in ids:
            judged = judge(model, images[part], labels[part], part)
            flags.append(judged.correct.cpu())
            largest = max(largest, judged.scores.max().item())
        result.correct[name] = torch.cat(flags)
        result.largest_perturbation[name] = largest
        done(name)
    for name, corruption in (corruptions or {}).items():
        flags = []
        for part in ids:
            found = check_corrupted(name, corruption(images[part], part), images[part])
            flags.append(is_correct(model, found, labels[part]).cpu())
        result.correct[name] = torch.cat(flags)
        done(name)
    return result


def _check_kinds(attacks: Mapping[str, SampleAttack], corruptions: Mapping[str, Corruption]) -> None:
    """Refuse what is no attack, or no corruption, or not in a mapping."""
    for what, given in (("attacks", attacks), ("corruptions", corruptions)):
        if not isinstance(given, Mapping):
            raise TypeError(f"evaluate: {what} must be a mapping of names to {what}, got {given!r}. Give {{'name': ...}}.")
    for name, attack in attacks.items():
        if not isinstance(getattr(attack, "threat", None), ThreatModel):
            raise TypeError(f"evaluate: {name!r} must be an attack, got {attack!r}. Give corruptions as corruptions={{...}}.")
    for name, corruption in corruptions.items():
        if not callable(corruption) or hasattr(corruption, "threat"):
            raise TypeError(f"evaluate: {name!r} must be a corruption, got {corruption!r}. Give attacks as attacks={{...}}.")
