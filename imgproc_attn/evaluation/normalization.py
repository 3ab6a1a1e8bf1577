"""Normalization and precision inside the model, so that attacks and corruptions see images in [0, 1] and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.checks import check_statistics

Statistics = Sequence[float] | Tensor  # one value per channel; arrays too


class NormalizedModel(nn.Module):
    """A model that takes images in [0, 1] and normalizes them itself.

    The values of images are not looked at here, in each forward pass: attacks and evaluations look at them once per batch.

    Args:
        model: Any timm model, or any module that takes normalized images.
        mean: One value per channel, in units of images in [0, 1]. Default: of the model's ``pretrained_cfg``.
        std: One value per channel, likewise. Default: of the model's ``pretrained_cfg``.

    Raises:
        ValueError: The model normalizes already; no values are given and it has none; statistics in gray levels, or not
            as many as channels; or ``std`` is not positive.
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
            raise ValueError("NormalizedModel: the model has no pretrained_cfg with mean and std; give mean= and std=.")
        mean, std = (torch.as_tensor(values, dtype=torch.float64).flatten().tolist() for values in given)
        for name, values in (("mean", mean), ("std", std)):
            check_statistics(f"NormalizedModel: {name} is ", values)
        if min(std, default=1.0) <= 0:
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
        """The inner model's, for timm's optimizer factory."""
        inner = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in inner()}

    def normalize(self, images: Tensor) -> Tensor:
        """What the inner model gets for images ``[B, C, H, W]`` in [0, 1].

        Raises:
            ValueError: Images that are not floating point, or of other channels.
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
        floats = isinstance(logits, Tensor) and logits.is_floating_point()
        return logits.to(images.dtype) if floats else logits  # who asked for logits refuses the rest
