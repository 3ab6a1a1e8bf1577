"""Log-weights of a filter in factored form.

A kernel is a function of a query token i and a key token j. Here its logarithm is never an ``N x N`` tensor. It is a sum of:

- inner products of *columns*, ``sum_c q_ic k_jc``;
- scaled squared *distances* of features or of coordinates, which a filter may lift to columns (`imgproc_attn.core.lifting`) or
  compute in its own way;
- a *key bias*, which does not depend on i;
- *dense biases*, for kernels without a factored form, computed on demand.

The product of two kernels joins these lists. The numbers of queries and keys, N and M, may differ.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Distance(NamedTuple):
    """The log-weights ``-s |q_i - k_j|^2`` of features, up to a constant per row (in j), which the softmax cancels.

    Attributes:
        q: ``[B, H, N, d]``.
        k: ``[B, H, M, d]``.
        scale: s, ``[H, 1, 1]``, float32 or float64.
        is_causal: Whether token i must not depend on later tokens, not even in rounding.
    """

    q: Tensor
    k: Tensor
    scale: Tensor
    is_causal: bool


class PlaceDistance(NamedTuple):
    """The log-weights ``-s |p_i - p_j|^2`` of coordinates; 0 where token i or token j has no place.

    Coordinates are whole or half numbers, so that columns of them can be exact.

    Attributes:
        q: Coordinates of the queries, ``[1 or B, N, D]`` float32; 0 for tokens without a place.
        k: Coordinates of the keys, ``[1 or B, M, D]``.
        q_placed: ``[N]``, 1 for queries with a place and 0 for others; None if all have one.
        k_placed: The same for the keys, ``[M]``; None if all have one.
        scale: s, ``[H, 1, 1]`` or one per axis, ``[H, 1, D]``, float32 or float64.
        like: A tensor of the type that the filter computes in.
    """

    q: Tensor
    k: Tensor
    q_placed: Tensor | None
    k_placed: Tensor | None
    scale: Tensor
    like: Tensor


class DenseBias(Protocol):
    """Log-weights without a factored form. They cost memory ``H x N x M`` once they are computed."""

    def dense(self) -> Tensor:
        """Return the log-weights, ``[1 or B, 1 or H, N, M]``, in the type that the filter computes in."""
        ...


class TensorBias(NamedTuple):
    """Log-weights that are a tensor already.

    Attributes:
        log_weights: ``[1 or B, 1 or H, N, M]``, in the type that the filter computes in.
    """

    log_weights: Tensor

    def dense(self) -> Tensor:
        return self.log_weights


class Terms(NamedTuple):
    """Factored log-weights: the sum over blocks of ``<q_i, k_j>``, the distances, ``key_bias_j`` and the dense biases.

    Attributes:
        q: Blocks of query columns, each ``[1 or B, H, N, C]``, in the type the filter computes in.
        k: Blocks of key columns of the same widths, each ``[1 or B, H, M, C]``.
        distances: Squared distances of features.
        places: Squared distances of coordinates.
        key_bias: ``[1 or B, H, M, 1]``, float32 or float64, or None.
        biases: Dense log-weights.
        scale: Factor on the columns' products, applied in the precision of their sums; 1 unless columns are all there is.
    """

    q: Sequence[Tensor] = ()
    k: Sequence[Tensor] = ()
    distances: Sequence[Distance] = ()
    places: Sequence[PlaceDistance] = ()
    key_bias: Tensor | None = None
    biases: Sequence[DenseBias] = ()
    scale: float = 1.0


def product(first: Terms, second: Terms) -> Terms:
    """Return the log-weights of the product of two kernels."""
    return Terms(
        [*_scaled(first), *_scaled(second)],
        [*first.k, *second.k],
        [*first.distances, *second.distances],
        [*first.places, *second.places],
        sum_of(first.key_bias, second.key_bias),
        [*first.biases, *second.biases],
    )


def _scaled(terms: Terms) -> Sequence[Tensor]:
    """Return the query columns with the factor inside."""
    return terms.q if terms.scale == 1.0 else [q * terms.scale for q in terms.q]


def sum_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two tensors, of which either may be missing."""
    if a is None:
        return b
    if b is None:
        return a
    return a + b
