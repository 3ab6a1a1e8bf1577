"""Normalization and precision inside the model, so that attacks and corruptions work on images in [0, 1]."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.checks import check_statistics

__all__ = ["InPrecision", "NormalizedModel", "Statistics"]

Statistics = Sequence[float] | Tensor  # One value per channel. NumPy arrays work too.


class NormalizedModel(nn.Module):
    """Model that takes images in [0, 1] and normalizes them itself.

    The forward pass does not check the values of the images. Attacks and evaluations check them once per batch.

    Args:
        model: Any timm model, or any module that takes normalized images.
        mean: One value per channel, in units of images in [0, 1]. Default: the model's ``pretrained_cfg``.
        std: One value per channel, in the same units. Default: the model's ``pretrained_cfg``.

    Raises:
        ValueError: The model normalizes already, or has no statistics and none are given. Or the statistics are in gray levels,
            do not fit the number of channels, or ``std`` is not positive.

    Example:
        >>> model = NormalizedModel(nn.Identity(), mean=[0.5], std=[0.25])
        >>> model(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Statistics | None = None, std: Statistics | None = None) -> None:
        super().__init__()
        if isinstance(model, nn.Module) and any(isinstance(module, NormalizedModel) for module in model.modules()):
            raise ValueError(
                "NormalizedModel: the model must take normalized images, got one that normalizes them itself. Give the model "
                "inside, or use this one as it is."
            )
        cfg = getattr(model, "pretrained_cfg", None) or {}
        given = [cfg.get(key) if values is None else values for key, values in (("mean", mean), ("std", std))]
        if given[0] is None or given[1] is None:
            raise ValueError(
                "NormalizedModel: the model must have a pretrained_cfg with mean and std, got none. Give mean= and std=."
            )
        mean, std = (torch.as_tensor(values, dtype=torch.float64).flatten().tolist() for values in given)
        for name, values in (("mean", mean), ("std", std)):
            check_statistics(f"NormalizedModel: {name} ", values)
        if min(std, default=1.0) <= 0:
            raise ValueError(
                f"NormalizedModel: std must be positive, got {tuple(std)}. Give the standard deviations of the data."
            )
        channels = getattr(model, "in_chans", len(mean))
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"NormalizedModel: mean and std must have {channels} values, one per channel, got {len(mean)} and {len(std)}. "
                "Give mean= and std= of that length."
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def no_weight_decay(self) -> set[str]:
        """Return the names of the inner model's parameters without weight decay, for timm's optimizer factory."""
        inner = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in inner()}

    def normalize(self, images: Tensor) -> Tensor:
        """Return the input of the inner model for images ``[B, C, H, W]`` in [0, 1].

        Raises:
            ValueError: The images are not floating point, or have another number of channels.
        """
        _check_type(images, len(self.mean))
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalize(images))


def _check_type(images: Tensor, channels: int) -> None:
    if not images.is_floating_point():
        raise ValueError(
            f"NormalizedModel: images must be floating point in [0, 1], got {images.dtype}. Divide 8-bit images by 255."
        )
    if images.ndim < 3 or channels not in (1, images.shape[-3]):
        raise ValueError(
            f"NormalizedModel: images must be [batch, {channels}, height, width], got {list(images.shape)}. Give as many "
            "channels as mean and std have values."
        )


torch.fx.wrap("_check_type")


class InPrecision(nn.Module):
    """Model whose forward pass runs under autocast, and whose logits have the dtype of the images.

    Args:
        model: Any classifier.
        autocast: Function that returns the context manager.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast
        self.train(model.training)

    def forward(self, images: Tensor, **inputs: Any) -> Tensor:
        with self.autocast():
            logits = self.model(images, **inputs)
        floats = isinstance(logits, Tensor) and logits.is_floating_point()  # The caller checks other outputs.
        return logits.to(images.dtype if images.is_floating_point() else torch.float32) if floats else logits
