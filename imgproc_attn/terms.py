"""Log-weights of a filter in factored form.

A kernel is a function of a query token i and a key token j. Its logarithm is never an ``N x N`` tensor here. It is a sum of
inner products of *columns*, ``sum_c q_ic k_jc``, of a scaled squared *distance*, which is itself such a product once lifted
(see `imgproc_attn.lifting`), and of a *key bias*, which does not depend on i. A product of kernels is a concatenation.
"""

from typing import NamedTuple

from torch import Tensor


class Distance(NamedTuple):
    """The log-weights ``-s |q_i - k_j|^2``, up to a constant in each row (in j), which the softmax cancels.

    Attributes:
        q: ``[B, H, N, d]``.
        k: ``[B, H, N, d]``.
        scale: s, ``[H, 1, 1]``, float32 or float64.
        is_causal: Whether token i must not depend on later tokens, not even in rounding.
    """

    q: Tensor
    k: Tensor
    scale: Tensor
    is_causal: bool


class Terms(NamedTuple):
    """Factored log-weights: the sum over blocks of ``<q_i, k_j>``, the distance, ``key_bias_j`` and ``bias_ij``.

    Attributes:
        q: Blocks of query columns, each ``[1 or B, H, N, C]``, in the type the filter computes in. Of a kernel on features one
            at least, with B; to one that is dense alone give columns of zeros.
        k: Blocks of key columns of the same widths.
        distance: A squared distance, or None.
        key_bias: ``[1 or B, H, N, 1]``, float32 or float64, or None.
        bias: Dense log-weights ``[1 or B, 1 or H, N, N]``, for kernels without a factored form, or None. Costs memory
            ``H x N^2``.
        scale: Factor on the columns' products, applied in the precision of their sums; 1 unless columns are all there is.
    """

    q: list[Tensor]
    k: list[Tensor]
    distance: Distance | None = None
    key_bias: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0


def product(first: Terms, second: Terms) -> Terms:
    """Log-weights of the product of two kernels.

    Positions go first: their columns cancel exactly only while nothing else has been added (`imgproc_attn.lifting`).

    Raises:
        ValueError: Both hold a distance.
    """
    distance, other = first.distance, second.distance
    if distance is None:
        distance = other
    elif other is not None:
        raise ValueError(
            "product: two kernels hold a distance; write one of them as columns, <2 s q, k>, and key_bias -s |k|^2."
        )
    key_bias, bias = _sum(first.key_bias, second.key_bias), _sum(first.bias, second.bias)
    return Terms(_scaled(first) + _scaled(second), first.k + second.k, distance, key_bias, bias)


def _scaled(terms: Terms) -> list[Tensor]:
    """Query columns with the factor inside."""
    return terms.q if terms.scale == 1.0 else [q * terms.scale for q in terms.q]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None:
        return b
    if b is None:
        return a
    return a + b
