"""Pointwise layers: the half of a block that treats each token by itself. timm's MLP is the default."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_number

__all__ = ["ISTA"]


class ISTA(nn.Module):
    """Step of sparse coding in a dictionary D, ``relu(z + eta D^T (z - D z) - eta lambda)`` (CRATE, arXiv 2306.01129).

    It is one iteration of the iterative shrinkage-thresholding algorithm for non-negative codes. The step starts from z, so it
    brings its own skip connection.

    Args:
        embed_dim: Width of the tokens. D is a square matrix of this width.
        step: Step size eta.
        threshold: Weight lambda of the sparsity. Larger values set more entries to zero.

    Raises:
        TypeError: ``step`` or ``threshold`` is not a number.
        ValueError: ``step`` is not positive and finite, or ``threshold`` is negative or not finite.

    Example:
        >>> ISTA(embed_dim=64)(torch.rand(2, 10, 64)).min().item() >= 0
        True
    """

    has_skip = True

    def __init__(self, embed_dim: int, step: float = 0.1, threshold: float = 0.1, device=None, dtype=None) -> None:
        super().__init__()
        if not 0 < check_number("mlp='ista': step", step) < math.inf:
            raise ValueError(f"mlp='ista': step must be positive and finite, got {step}. Give a number like 0.1.")
        if not 0 <= check_number("mlp='ista': threshold", threshold) < math.inf:
            raise ValueError(f"mlp='ista': threshold must be at least 0 and finite, got {threshold}. Give a number like 0.1.")
        self.step = float(step)
        self.threshold = float(threshold)
        self.weight = nn.Parameter(torch.empty(embed_dim, embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw D as the authors do, by Kaiming's uniform distribution."""
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Return the codes ``[..., C]`` of tokens ``[..., C]``."""
        error = z - F.linear(z, self.weight)
        return F.relu(z + self.step * F.linear(error, self.weight.t()) - self.step * self.threshold)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, step={self.step}, threshold={self.threshold}"
