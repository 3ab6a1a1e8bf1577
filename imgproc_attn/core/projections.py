"""Projections: the input and the output projection of an attention layer."""

import warnings
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .gates import Gate

__all__ = ["Projection", "QueryKeyValue", "SharedSubspaces", "TiedOutput"]


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


class SharedSubspaces(nn.Linear):
    """One projection for queries, keys and values, ``q = k = v = U_h^T z``.

    It is the projection of MSSA, the attention of CRATE (arXiv 2306.01129) and AoT (arXiv 2506.03790). Each head h has a
    subspace of the token space, spanned by the rows ``U_h^T`` of the weight. The similarity of two tokens is that of their
    projections onto the subspace, and these projections are what the filter averages. There is no bias. The projection has a
    third of the parameters of `QueryKeyValue`.

    Args:
        dim: Width of the tokens.
        num_heads: Number of subspaces.
        subspace_dim: Width p of a subspace. Default: ``dim / num_heads``.

    Raises:
        TypeError: ``subspace_dim`` is not a whole number.
        ValueError: ``dim`` is not divisible by ``num_heads`` and ``subspace_dim`` is left out, or ``subspace_dim`` is not from
            1 to ``dim``.

    Example:
        >>> import torch
        >>> q, k, v = SharedSubspaces(64, num_heads=4)(torch.rand(2, 10, 64))
        >>> q is k is v, tuple(v.shape)
        (True, (2, 4, 10, 16))
    """

    def __init__(self, dim: int, num_heads: int, subspace_dim: int | None = None, device=None, dtype=None) -> None:
        if subspace_dim is None and dim % num_heads != 0:
            raise ValueError(
                f"projection='subspaces': dim must be divisible by num_heads={num_heads}, got {dim}. Give subspace_dim=, or "
                "change embed_dim= or num_heads=."
            )
        width = dim // num_heads if subspace_dim is None else check_whole("projection='subspaces': subspace_dim", subspace_dim)
        if not 1 <= width <= dim:
            raise ValueError(
                f"projection='subspaces': subspace_dim must be from 1 to the width of the tokens, {dim}, got {width}. Give a "
                "smaller one."
            )
        super().__init__(dim, num_heads * width, bias=False, device=device, dtype=dtype)
        self.num_heads = num_heads
        self.head_dim = self.value_dim = width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return q, k and v of tokens ``[B, N, C]``, one tensor ``[B, H, N, p]``."""
        w = F.linear(x, self.weight).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        return w, w, w


class TiedOutput(nn.Module):
    """Output projection with the subspaces of the input, ``eta [U_1, ..., U_H] u``, the map of the theory (AoT, arXiv
    2506.03790).

    A free output projection absorbs the step size eta. This one has the weight of the input, so it needs its own.

    Args:
        subspaces: The input projection, whose weight is used again. It is not registered a second time.
        step: Step size eta. The theory needs a positive one.
        learned: Whether eta is a parameter.

    Raises:
        TypeError: ``learned`` is not a bool.
        ValueError: ``step`` is not finite.

    Example:
        >>> import torch
        >>> subspaces = SharedSubspaces(64, num_heads=4)
        >>> TiedOutput(subspaces, step=0.5)(torch.rand(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(self, subspaces: SharedSubspaces, step: float = 1.0, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__()
        self._subspaces = (subspaces,)  # a tuple, so that the weight has one name in checkpoints
        self.step = Gate(1, step, learned, "projection='subspaces': step", device=device, dtype=dtype)
        if step <= 0:
            warnings.warn(
                f"projection='subspaces': step must be positive for the signal-to-noise ratio to grow, got {step}. Give 1.0.",
                stacklevel=2,
            )

    def forward(self, u: Tensor) -> Tensor:
        """Return tokens ``[B, N, C]`` of merged heads ``[B, N, H p]``."""
        return self.step(F.linear(u, self._subspaces[0].weight.t()))
