"""What is trained: a model with its loss, as timm's `TrainingTask`."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..data import Preprocessing
from ..evaluation.attacks import PGD
from ..evaluation.classification import TopAccuracy
from ..evaluation.normalization import NormalizedModel
from ..recipe.schema import Recipe
from ..segmentation.metrics import IGNORE_INDEX, IoUMetric


class Classification(ClassificationTask):
    """Classification, with an evaluator that counts exactly."""

    def create_evaluator(self, **kwargs: Any) -> TopAccuracy:
        return TopAccuracy(self.device, **kwargs)

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch."""


class PixelClassification(ClassificationTask):
    """Segmentation: timm's task, whose loss here is of pixels, with an evaluator that adds up areas.

    Args:
        model: Gives logits ``[B, classes, H, W]``.
        criterion: Of logits and labels ``[B, H, W]``.
        num_classes: Of the pixels.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, *, num_classes: int, **kwargs: Any) -> None:
        super().__init__(model, criterion, **kwargs)
        self.num_classes = num_classes

    def create_evaluator(self, **kwargs: Any) -> IoUMetric:
        return IoUMetric(self.num_classes, self.device, **kwargs)


class PixelCrossEntropy(nn.Module):
    """Mean cross-entropy of the pixels that have a label; 0 where none has.

    The pixels are those of all processes, whose gradients are averaged afterwards: else a pixel would count more where fewer
    have a label. (Batches of one update, ``run.grad_accum_steps``, count alike.)
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
        count, processes = (labels != IGNORE_INDEX).sum(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            processes = dist.get_world_size()
        return processes * losses / count.clamp_min(1)


def build_segmentation(model: nn.Module, num_classes: int, device: torch.device) -> PixelClassification:
    """The task of segmentation."""
    return PixelClassification(model, PixelCrossEntropy(), num_classes=num_classes, device=device, verbose=False)


class AdversarialClassification(Classification):
    """Classification of images attacked by PGD (arXiv 1706.06083).

    The attack sees images in [0, 1], with the model in evaluation mode and its own random starts; the update then is the
    usual one on what it found.

    Args:
        eps: Radius of the L-infinity ball, in units of [0, 1].
        steps: Of PGD.
        step_size: Of PGD. Default: ``2.5 eps / steps``.
        warmup_epochs: The radius grows linearly over them; a given ``step_size`` with it.
        mean: Of the normalization of incoming images.
        std: Of the normalization of incoming images.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        eps: float,
        steps: int,
        step_size: float | None,
        warmup_epochs: int,
        mean: Any,
        std: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, criterion, **kwargs)
        self.eps, self.steps, self.step_size, self.warmup_epochs = eps, steps, step_size, warmup_epochs
        self.mean, self.std = mean, std
        self._share = 1.0

    def start_epoch(self, epoch: int) -> None:
        self._share = min(1.0, (epoch + 1) / (self.warmup_epochs + 1))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        return super().forward(self.attacked(input, target), target) if self.training else super().forward(input, target)

    def attacked(self, input: Tensor, target: Tensor) -> Tensor:
        """The batch under attack, normalized as it came."""
        inner = unwrap_model(self.trainable_module)  # without DDP, whose hooks belong to the update alone
        model = NormalizedModel(inner, self.mean, self.std).to(input.device)
        labels = target.argmax(dim=1) if target.ndim == 2 else target
        step_size = None if self.step_size is None else self.step_size * self._share
        attack = PGD(self.eps * self._share, self.steps, step_size)
        model.eval()
        images = (input * model.std + model.mean).clamp(0, 1)
        # drawn at once, where the images are: draws that belong to samples would cost a GPU more than its passes
        start = attack.threat.project(images + attack.eps * (2 * torch.rand_like(images) - 1), images)
        found = attack.climb(model, start, images, labels)
        inner.train()
        return model.normalize(found)


def build_task(recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Classification:
    """The task of a recipe: its loss, its attack while training."""
    run = recipe.run
    kwargs: dict[str, Any] = {"device": device, "verbose": False}
    criterion: nn.Module
    if run.loss == "bce":
        criterion = BinaryCrossEntropy(0.0 if recipe.augmentation.mixes else run.label_smoothing)
    elif recipe.augmentation.mixes:
        criterion = SoftTargetCrossEntropy()
    elif run.label_smoothing:
        criterion = LabelSmoothingCrossEntropy(run.label_smoothing)
    else:
        criterion = nn.CrossEntropyLoss()
    attack: dict[str, Any] = recipe.adversarial.model_dump() if recipe.adversarial else {}
    if not attack:
        return Classification(model, criterion, **kwargs)
    return AdversarialClassification(model, criterion, mean=preprocessing.mean, std=preprocessing.std, **attack, **kwargs)
