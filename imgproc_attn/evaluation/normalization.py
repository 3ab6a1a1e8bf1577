"""Normalisation and precision inside the model, so that attacks and corruptions see images in [0, 1] and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NormalizedModel(nn.Module):
    """A model that takes images in [0, 1] and normalises them itself.

    Args:
        model: Any timm model, or any module that takes normalised images.
        mean: One value a channel. Default: of the model's ``pretrained_cfg``.
        std: One value a channel. Default: of the model's ``pretrained_cfg``.

    Raises:
        ValueError: No values are given and the model has none, or ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        cfg = getattr(model, "pretrained_cfg", None) or {}
        mean, std = mean or cfg.get("mean"), std or cfg.get("std")
        if mean is None or std is None:
            raise ValueError("NormalizedModel: the model has no pretrained_cfg with mean and std; give mean= and std=.")
        if min(std) <= 0:
            raise ValueError(f"NormalizedModel: std is {tuple(std)}, but every value must be positive.")
        channels = getattr(model, "in_chans", len(mean))
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"NormalizedModel: {len(mean)} means and {len(std)} standard deviations for {channels} channels; "
                f"give mean= and std= with {channels} values."
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def no_weight_decay(self) -> set[str]:
        """The inner model's, for timm's optimiser factory."""
        inner = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in inner()}

    def normalize(self, images: Tensor) -> Tensor:
        """What the inner model gets for images in [0, 1]."""
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalize(images))


class InPrecision(nn.Module):
    """A model whose forward pass runs under autocast, and whose logits have the type of the images.

    Args:
        model: Any classifier.
        autocast: Makes the context.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast():
            logits = self.model(images)
        return logits.to(images.dtype)
