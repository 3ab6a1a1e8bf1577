"""Log-weights of a filter in factored form.

A kernel is a function of a query token i and a key token j. Its logarithm is kept as an inner product of *columns*,
``log K_ij = sum_c q_ic k_jc``, so that no ``N x N`` tensor is ever formed and a product of kernels is a concatenation of
columns. Terms constant in a row (in j) are left out where that helps: the softmax over a row cancels them.

Exactness. A Gaussian of positions written as columns, ``-|p_i - p_j|^2 / h^2 = 2 p_i.p_j / h^2 - |p_i|^2 / h^2 -
|p_j|^2 / h^2``, sums large numbers to a small one. The sum is exact all the same when each column is *narrow*: coordinates
are small whole or half numbers, so if ``1/h^2`` has few bits every product and partial sum is a floating-point number.
`split_scale` cuts ``1/h^2`` into such parts, one column each. The columns must come before those of the features, while the
running sum is still exact; `product` therefore puts positions first.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Factored log-weights: ``log K_ij = sum over blocks of <q_i, k_j>``, plus ``bias_ij``.

    Attributes:
        q: Blocks of query columns, each ``[1 or B, H, N, C]``, in the type the filter computes in.
        k: Blocks of key columns of the same widths.
        bias: Dense log-weights ``[1 or B, 1 or H, N, N]`` for kernels without such a form, or None. Costs memory
            ``H x N^2``.
    """

    q: list[Tensor]
    k: list[Tensor]
    bias: Tensor | None = None


def product(first: Terms, second: Terms) -> Terms:
    """Log-weights of the product of two kernels. Give positions as ``first``: see the module's note on exactness."""
    bias, other = first.bias, second.bias
    if bias is None:
        bias = other
    elif other is not None:
        bias = bias + other
    return Terms(first.q + second.q, first.k + second.k, bias)


def lift(terms: Terms) -> tuple[Tensor, Tensor]:
    """All blocks side by side: query and key columns ``[B, H, N, C]``, C padded with zeros to a multiple of 8."""
    batch, width = 1, 0
    for block in terms.q:
        batch = max(batch, block.shape[0]) if block.shape[0] > 0 else 0
        width += block.shape[-1]
    padding = -width % 8
    if len(terms.q) == 1 and padding == 0:
        return terms.q[0], terms.k[0]
    q = [block.expand(batch, -1, -1, -1) for block in terms.q]
    k = [block.expand(batch, -1, -1, -1) for block in terms.k]
    if padding > 0:
        q.append(q[0].new_zeros(1).expand(batch, q[0].shape[1], q[0].shape[2], padding))
        k.append(k[0].new_zeros(1).expand(batch, k[0].shape[1], k[0].shape[2], padding))
    return torch.cat(q, dim=-1), torch.cat(k, dim=-1)


def split_value(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of type ``dtype`` whose sum is ``x``: one, or three in half precision, which hold the 24 bits of a float32.

    The gradient runs through the last part alone, once.
    """
    if dtype != torch.float16 and dtype != torch.bfloat16:
        return [x.to(dtype)]
    high = x.detach().to(dtype)
    rest = x - high.to(x.dtype)
    middle = rest.detach().to(dtype)
    return [high, middle, (rest - middle.to(x.dtype)).to(dtype)]


def split_scale(scale: Tensor, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of type ``dtype`` whose sum is ``scale * x``, for ``x`` of few bits (coordinates and their squares).

    float64 needs one. float32 takes two: the first 9 bits of ``scale``, which make every partial sum exact up to grids of
    64 x 64, and the rest. Half precision takes three (see `split_value`).

    Args:
        scale: ``[H, 1, C]``, float32 or float64.
        x: ``[1 or B, 1, N, C]``, float32.
        dtype: Type the filter computes in.

    Returns:
        One, two or three tensors ``[1 or B, H, N, C]``, most significant first.
    """
    if dtype != torch.float32:
        return split_value(scale * x, dtype)
    fixed = scale.detach().to(torch.float32)
    shifted = fixed * 32769.0  # Dekker's splitting: 2^15 + 1 leaves the upper 24 - 15 = 9 bits
    high = shifted - (shifted - fixed)
    return [high * x.to(torch.float32), ((scale - high) * x).to(torch.float32)]
