"""Adaptive attack on filters: the logits of the model, with the gradient of wider kernels, which do not saturate."""

import copy

import torch
from timm.layers import Attention
from torch import Tensor, nn

from ..core.bandwidths import Bandwidth
from ..core.kernels import DotProduct, Elliptical

__all__ = ["StraightThrough", "widened", "with_wider_gradients"]


class StraightThrough(nn.Module):
    """Logits of one model, with the gradient of another (backward pass differentiable approximation, arXiv 1802.00420).

    Args:
        model: Model that gives the values.
        surrogate: Model that gives the gradient.
    """

    def __init__(self, model: nn.Module, surrogate: nn.Module) -> None:
        super().__init__()
        self.model, self.surrogate = model, surrogate

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            exact = self.model(images)
        near = self.surrogate(images)
        return near + (exact - near).detach()


@torch.no_grad()
def widened(model: nn.Module, factor: float) -> nn.Module | None:
    """Return a copy whose attention kernels are ``factor`` times as wide in feature space; None without attention.

    Range bandwidths are multiplied by the factor. Scores of dot products, also in timm's attention, are divided by its square.
    """
    model, changed = copy.deepcopy(model), False
    for name, module in model.named_modules():
        if isinstance(module, Bandwidth) and name.endswith("range_bandwidth"):
            module.log_excess.copy_((module() * factor - module.floor).log())
            changed = True
        elif isinstance(module, Attention | DotProduct | Elliptical):
            module.scale = module.scale / factor**2
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # The fused path of timm takes no scale.
            changed = True
    return model if changed else None


def with_wider_gradients(model: nn.Module, factor: float) -> nn.Module | None:
    """Return the model with the gradient of kernels ``factor`` times as wide; None for a model without attention."""
    wide = widened(model, factor)
    return None if wide is None else StraightThrough(model, wide).eval()
