"""Scorers of the sanity checks: attacks on variants of a model, and gradients beside finite differences.

Their per-sample results are logged like those of all conditions, so that checks show progress and can be resumed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attacks import Attack, Passes
from .attacks.base import is_correct
from .bpda import with_wider_gradients
from .contract import check_batch
from .gradient_checks import GRADIENT_PASSES, gradient_flags
from .results_log import MemoryLog, SampleResults
from .samples import Batch
from .scorers import BatchResult, Scorer

__all__ = [
    "UNCHANGED",
    "AttackProbe",
    "GradientProbe",
    "Scaled",
    "ScaledLogits",
    "Unchanged",
    "Variant",
    "WiderKernels",
    "answers",
]


class Scaled(nn.Module):
    """Model whose logits are multiplied by a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


class Variant(ABC):
    """Changes a model without changing its predictions. Variants are dataclasses: their fields are recorded as settings."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the variant of a model."""


@dataclass(frozen=True)
class Unchanged(Variant):
    """The model itself."""

    def __call__(self, model: nn.Module) -> nn.Module:
        return model


UNCHANGED = Unchanged()


@dataclass(frozen=True)
class ScaledLogits(Variant):
    """The model with logits multiplied by ``factor``."""

    factor: float

    def __call__(self, model: nn.Module) -> nn.Module:
        return Scaled(model, self.factor).eval()


@dataclass(frozen=True)
class WiderKernels(Variant):
    """The model with the gradient of kernels ``factor`` times as wide, see `with_wider_gradients`."""

    factor: float

    def __call__(self, model: nn.Module) -> nn.Module:
        wide = with_wider_gradients(model, self.factor)
        if wide is None:
            raise ValueError(f"The model must have attention for wider kernels, got {type(model).__name__}. Leave it out.")
        return wide


@dataclass(frozen=True)
class AttackProbe(Scorer):
    """Correct where a model withstands an attack on a variant of it. The column ``right`` says where it is correct without.

    Args:
        attack: Attack on images in [0, 1].
        variant: Model that the attack sees.
    """

    attack: Attack
    variant: Variant = UNCHANGED

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(1 + forward, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        images = check_batch(model, images, labels)
        right = is_correct(model, images, labels)
        withstands = right.clone()
        if right.any():
            success = self.attack(self.variant(model), images[right], labels[right], ids[right.to(ids.device)]).success
            withstands[right] = ~success
        return BatchResult(images, {"right": right.int(), "correct": withstands.int()})


@dataclass(frozen=True)
class GradientProbe(Scorer):
    """Columns of `gradient_flags`, of the cross-entropy."""

    @property
    def passes(self) -> Passes:
        return GRADIENT_PASSES

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        return BatchResult(images, gradient_flags(model, images, labels))


@torch.no_grad()
def answers(scorer: Scorer, model: nn.Module, batches: Iterable[Batch]) -> SampleResults:
    """Return the results of a scorer on batches, in memory."""
    log = MemoryLog(type(scorer).__name__)
    for images, labels, ids in batches:
        log.add(ids, scorer(model, images, labels, ids), ids[:0])
    return log.read()
