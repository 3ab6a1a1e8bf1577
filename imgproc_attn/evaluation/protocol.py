"""The protocol: every number is a count of per-sample flags."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .attacks import check_images, is_correct
from .conditions import SampleAttack, judge_of

Corruption = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Evaluation:
    """Which samples a model classifies correctly, by condition.

    Attributes:
        correct: ``{condition: [n] bool}``; ``"clean"`` is always there. Under attack: correct on the clean
            image and not fooled; under attacks on normalised tensors, as published: the label is predicted in the end.
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
        corruptions: By name.
        batch_size: Images at a time. No number depends on it, up to rounding.
        progress: Called with the name of each condition when it is done.

    Raises:
        ValueError: As `check_images`; no images, for which no accuracy exists; or two conditions of one name.
        FloatingPointError: Logits or gradients that are not finite.
    """
    check_images(model, images, labels)
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
        result.correct[name] = torch.cat(
            [is_correct(model, corruption(images[part], part), labels[part]) for part in ids]
        ).cpu()
        done(name)
    return result
