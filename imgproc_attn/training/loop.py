"""The loop: a model, images, a recipe; timm's optimisers and schedule."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomAffine
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from ..evaluation.draws import mix
from .recipe import Recipe


class Epoch(NamedTuple):
    """What one pass over the images left behind."""

    epoch: int
    loss: float
    lr: float


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, seed: int, progress: Callable[[Epoch], None] | None = None
) -> list[Epoch]:
    """Train ``model`` in place on images in [0, 1].

    torch's generators are seeded anew each epoch, from ``seed`` and the epoch.

    Args:
        model: Maps images in [0, 1] to logits.
        images: ``[n, C, H, W]``.
        labels: ``[n]``.
        recipe: What to do.
        seed: Of all random choices.
        progress: Called after each epoch.

    Raises:
        FloatingPointError: The loss is not finite; the message names epoch and update.
        ValueError: Fewer images than one batch.
    """
    batch_size, schedule = recipe.run.batch_size, recipe.schedule
    updates = len(images) // batch_size
    if updates == 0:
        raise ValueError(f"run.batch_size is {batch_size}, but there are {len(images)} training images; lower it.")
    optimiser = create_optimizer_v2(
        model, recipe.optimiser.name, lr=recipe.optimiser.lr, weight_decay=recipe.optimiser.weight_decay
    )
    scheduler = CosineLRScheduler(
        optimiser,
        t_initial=schedule.epochs * updates,
        warmup_t=schedule.warmup_epochs * updates,
        warmup_lr_init=recipe.optimiser.lr / max(schedule.warmup_epochs * updates, 1),
        t_in_epochs=False,
    )
    augment = _augmentation(recipe)
    model.train()
    history = []
    for epoch in range(schedule.epochs):
        torch.manual_seed(mix(seed, epoch))
        batches = torch.randperm(len(images), device=images.device)[: updates * batch_size].split(batch_size)
        augmented = augment(images)
        total = 0.0
        for i, batch in enumerate(batches):
            update = epoch * updates + i
            scheduler.step_update(update)
            loss = F.cross_entropy(model(augmented[batch]), labels[batch], label_smoothing=recipe.run.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            if recipe.optimiser.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip_grad)
            optimiser.step()
            total += loss.item()
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"The loss is {loss.item()} in epoch {epoch}, update {i}; lower optimiser.lr, "
                    f"now {recipe.optimiser.lr}, or set optimiser.clip_grad."
                )
        history.append(Epoch(epoch, total / updates, optimiser.param_groups[0]["lr"]))
        if progress:
            progress(history[-1])
    model.eval()
    return history


def _augmentation(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    a = recipe.augmentation
    if a.degrees == 0 and a.translate == 0 and list(a.scale) == [1.0, 1.0]:
        return lambda images: images
    return RandomAffine(degrees=a.degrees, translate=(a.translate, a.translate), scale=(a.scale[0], a.scale[1]), p=1.0)
