"""Scorers ask a model about a batch of images and return one result per sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from .attacks import Attack, Passes, WorstOf
from .attacks.base import TargetAttack
from .contract import check_batch, check_corrupted

if TYPE_CHECKING:
    from .scoring import Scoring

__all__ = ["AnyAttack", "AttackScorer", "BatchResult", "CleanScorer", "CorruptedScorer", "Corruption", "Scorer"]

AnyAttack = Attack | WorstOf
Corruption = Callable[[Tensor, Tensor], Tensor]  # images [B, C, H, W] in [0, 1] and sample ids [B] to images


class BatchResult(NamedTuple):
    """Per-sample results of one batch.

    Attributes:
        images: ``[B, C, H, W]`` that were scored: the images given, or adversarial ones.
        columns: By name, one value per sample: tensors ``[B, …]``, or lists that JSON can hold.
    """

    images: Tensor
    columns: Mapping[str, Any]


class Scorer(ABC):
    """Asks a model about a batch. Scorers are dataclasses: their fields are recorded as settings."""

    @property
    @abstractmethod
    def passes(self) -> Passes:
        """Passes through the model per sample, at most."""

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        """Score a batch.

        Args:
            model: Maps images in [0, 1] to outputs, in evaluation mode.
            images: ``[B, C, H, W]`` in [0, 1].
            labels: ``[B, …]``, as the data set has them.
            ids: ``[B]`` ids of the samples in their data set, which random draws depend on.
        """


@dataclass(frozen=True)
class CleanScorer(Scorer):
    """Scores the images as they are.

    Args:
        task: Scores outputs.
        details: Whether to keep the columns in the task's ``details``.
    """

    task: "Scoring"
    details: bool = field(default=False, metadata={"setting": False})

    @property
    def passes(self) -> Passes:
        return self.task.passes

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        images = self.task.check_inputs(model, images, labels)
        columns = self.task.score(model, images, self.task.targets(images, labels))
        dropped = () if self.details else self.task.details
        return BatchResult(images, {name: values for name, values in columns.items() if name not in dropped})


@dataclass(frozen=True)
class AttackScorer(Scorer):
    """Scores adversarial images; the column ``scores`` holds the size of the perturbation in the norm of the threat model.

    Args:
        task: Scores outputs.
        attack: Attack of the task's targets.
    """

    task: "Scoring"
    attack: TargetAttack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(forward + self.task.passes.forward, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        images = check_batch(model, images, bounds=self.attack.threat.bounds)
        targets = self.task.targets(images, labels)
        adversarial = self.attack.worst(self.task.view(model), images, targets, ids.cpu())
        columns = self.task.score(model, adversarial, targets)
        return BatchResult(adversarial, {**columns, "scores": self.attack.threat.distance(adversarial, images)})


@dataclass(frozen=True)
class CorruptedScorer(Scorer):
    """Corrupts the images, then hands them to another scorer.

    Args:
        name: Name of the corruption, for errors.
        corruption: Function of images and sample ids.
        scorer: Scores the corrupted images.
    """

    name: str
    corruption: Corruption
    scorer: Scorer

    @property
    def passes(self) -> Passes:
        return self.scorer.passes

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        corrupted = check_corrupted(self.name, self.corruption(images, ids), images)
        return self.scorer(model, corrupted, labels, ids)
