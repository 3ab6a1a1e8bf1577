"""Projections: from tokens to queries, keys and values."""

import torch.nn.functional as F
from torch import Tensor, nn


class QueryKeyValue(nn.Linear):
    """Separate query, key and value projections in one matrix, laid out and named as timm's.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; ``dim`` must be divisible by it.
        bias: Add a learned offset.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, device=None, dtype=None) -> None:
        if dim % num_heads != 0:
            raise ValueError(f"The width {dim} is not divisible by {num_heads} heads; change embed_dim= or num_heads=.")
        super().__init__(dim, 3 * dim, bias=bias, device=device, dtype=dtype)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Tokens ``[B, N, C]`` to q, k, v ``[B, H, N, d]``."""
        qkv = F.linear(x, self.weight, self.bias).reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v
