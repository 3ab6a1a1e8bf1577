"""Projections: the input and the output map of an attention layer."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole


class Projection(NamedTuple):
    """The two maps between tokens and heads.

    Attributes:
        qkv: Maps tokens ``[B, N, C]`` to q and k ``[B, H, N, d]`` and v ``[B, H, N, D]``. Its ``head_dim`` is d.
        proj: Maps merged heads ``[B, N, H D]`` to tokens.
    """

    qkv: nn.Module
    proj: nn.Module


class QueryKeyValue(nn.Linear):
    """Separate query, key and value projections in one matrix, laid out and named as timm's.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; ``dim`` must be divisible by it.
        bias: Add a learned offset.
        qk_dim: Width d of the queries and keys of a head. Default: ``dim / num_heads``, the width of the values. With 59 a
            bilateral filter's lifted columns are 64 wide, with 63 those of non-local means, which GPUs need no padding for.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``, or ``qk_dim`` is no positive whole number.

    Example:
        >>> import torch
        >>> q, k, v = QueryKeyValue(64, num_heads=4, qk_dim=11)(torch.rand(2, 10, 64))
        >>> tuple(q.shape), tuple(v.shape)
        ((2, 4, 10, 11), (2, 4, 10, 16))
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, qk_dim: int | None = None, device=None, dtype=None) -> None:
        if dim % num_heads != 0:
            raise ValueError(f"The width {dim} is not divisible by {num_heads} heads; change embed_dim= or num_heads=.")
        value_dim = dim // num_heads
        head_dim = value_dim if qk_dim is None else check_whole("projection: qk_dim", qk_dim)
        if head_dim < 1:
            raise ValueError(f"projection: qk_dim must be at least 1, got {qk_dim}. Leave it out for {value_dim}.")
        super().__init__(dim, num_heads * (2 * head_dim + value_dim), bias=bias, device=device, dtype=dtype)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.value_dim = value_dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Map tokens ``[B, N, C]`` to q, k and v."""
        qkv = F.linear(x, self.weight, self.bias)
        if self.head_dim == self.value_dim:
            q, k, v = qkv.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        widths = [self.num_heads * self.head_dim] * 2 + [self.num_heads * self.value_dim]
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv.split(widths, dim=2))
        return q, k, v
