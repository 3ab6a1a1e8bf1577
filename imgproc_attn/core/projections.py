"""Projections: the input and the output projection of an attention layer."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole

__all__ = ["Projection", "QueryKeyValue"]


class Projection(NamedTuple):
    """Input and output projection of an attention layer.

    Attributes:
        qkv: Projection of tokens ``[B, N, C]`` to q and k ``[B, H, N, d]`` and v ``[B, H, N, D]``. Its ``head_dim`` is d.
        proj: Projection of merged heads ``[B, N, H D]`` to tokens.
    """

    qkv: nn.Module
    proj: nn.Module


class QueryKeyValue(nn.Linear):
    """Query, key and value projections in one matrix, with timm's layout and names.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads. ``dim`` must be divisible by it.
        bias: Whether there is a learned bias.
        qk_dim: Width d of the queries and keys of a head. Default: ``dim / num_heads``, the width of the values. A filter adds
            columns to d. Their number depends on the kernel and on the precision. In float32, the columns of non-local means
            are 64 wide if d is 63, and those of a bilateral filter if d is 56. GPUs need no padding for a width of 64.

    Raises:
        TypeError: ``qk_dim`` is not a whole number.
        ValueError: ``dim`` is not divisible by ``num_heads``, or ``qk_dim`` is less than 1.

    Example:
        >>> import torch
        >>> q, k, v = QueryKeyValue(64, num_heads=4, qk_dim=11)(torch.rand(2, 10, 64))
        >>> tuple(q.shape), tuple(v.shape)
        ((2, 4, 10, 11), (2, 4, 10, 16))
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, qk_dim: int | None = None, device=None, dtype=None) -> None:
        if dim % num_heads != 0:
            raise ValueError(f"dim must be divisible by num_heads={num_heads}, got {dim}. Change embed_dim= or num_heads=.")
        value_dim = dim // num_heads
        head_dim = value_dim if qk_dim is None else check_whole("projection: qk_dim", qk_dim)
        if head_dim < 1:
            raise ValueError(f"projection: qk_dim must be at least 1, got {qk_dim}. Leave it out for {value_dim}.")
        super().__init__(dim, num_heads * (2 * head_dim + value_dim), bias=bias, device=device, dtype=dtype)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.value_dim = value_dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return q, k and v of tokens ``[B, N, C]``."""
        qkv = F.linear(x, self.weight, self.bias)
        if self.head_dim == self.value_dim:
            q, k, v = qkv.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        widths = [self.num_heads * self.head_dim] * 2 + [self.num_heads * self.value_dim]
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv.split(widths, dim=2))
        return q, k, v
