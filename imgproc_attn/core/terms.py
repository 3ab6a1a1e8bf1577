"""Log-weights of a filter in factored form.

A kernel is a function of a query token i and a key token j. Its logarithm is not stored as an ``N x N`` tensor. It is a sum of:

- inner products of *columns*, ``sum_c q_ic k_jc``;
- scaled squared *distances* of features or of coordinates, which a filter lifts to columns (`imgproc_attn.core.lifting`) or
  computes in its own way;
- a *key bias*, which does not depend on i;
- *dense biases*, for kernels without a factored form, computed on demand.

The product of two kernels concatenates these lists. The numbers of queries and keys, N and M, may differ.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ..utils.named_tuples import changed

__all__ = ["DenseBias", "Distance", "PositionDistance", "TensorBias", "Terms", "product"]


class Distance(NamedTuple):
    """Log-weights ``-s |q_i - k_j|^2`` of features, up to a constant per row, which the softmax cancels.

    Attributes:
        q: Queries ``[B, H, N, d]``.
        k: Keys ``[B, H, M, d]``.
        scale: s, ``[H, 1, 1]``, float32 or float64.
        is_causal: Whether token i must not depend on later tokens, not even in rounding.
    """

    q: Tensor
    k: Tensor
    scale: Tensor
    is_causal: bool


class PositionDistance(NamedTuple):
    """Log-weights ``-s |p_i - p_j|^2`` of coordinates. They are 0 if token i or token j has no position.

    Coordinates are whole or half numbers, so that columns of them can be exact. One axis (D = 1) is a line of up to 4,096
    tokens (see `imgproc_attn.core.lifting`).

    Attributes:
        q: Coordinates of the queries, ``[1 or B, N, D]`` float32. They are 0 for tokens without a position.
        k: Coordinates of the keys, ``[1 or B, M, D]``, in the same form.
        q_has_position: ``[N]``, 1 for queries with a position and 0 for others. None if all have one.
        k_has_position: The same for the keys, ``[M]``.
        scale: s, ``[H, 1, 1]`` or one per axis, ``[H, 1, D]``, float32 or float64.
        like: A tensor of the dtype that the filter computes in.
    """

    q: Tensor
    k: Tensor
    q_has_position: Tensor | None
    k_has_position: Tensor | None
    scale: Tensor
    like: Tensor


class DenseBias(Protocol):
    """Log-weights without a factored form. Once computed, they need memory for ``H x N x M`` values.

    A bias may have a method ``causal_form() -> Terms | None``. It returns columns with the same log-weights for keys up to the
    query, up to a constant per row, or None if there are none. A causal filter then needs no dense bias. A method
    ``causal_key_bias() -> Tensor | None`` returns the same as one log-weight per key, ``[1 or B, H, M, 1]``.
    """

    def dense(self) -> Tensor:
        """Return the log-weights, ``[1 or B, 1 or H, N, M]``, in the dtype that the filter computes in."""
        ...


class TensorBias(NamedTuple):
    """Log-weights given as a tensor.

    Attributes:
        log_weights: ``[1 or B, 1 or H, N, M]``, in the dtype that the filter computes in.
    """

    log_weights: Tensor

    def dense(self) -> Tensor:
        return self.log_weights


class Terms(NamedTuple):
    """Factored log-weights: the sum of all products ``<q_i, k_j>``, distances, ``key_bias_j`` and dense biases.

    Attributes:
        q: Blocks of query columns, each ``[1 or B, H, N, C]``, in the dtype that the filter computes in.
        k: Blocks of key columns of the same widths, each ``[1 or B, H, M, C]``.
        distances: Squared distances of features.
        position_distances: Squared distances of coordinates.
        key_bias: ``[1 or B, H, M, 1]``, float32 or float64, or None.
        biases: Dense log-weights.
        scale: Factor on the products of columns, applied in the precision of their sums. Must be 1 if there are other terms
            than dense biases.
    """

    q: Sequence[Tensor] = ()
    k: Sequence[Tensor] = ()
    distances: Sequence[Distance] = ()
    position_distances: Sequence[PositionDistance] = ()
    key_bias: Tensor | None = None
    biases: Sequence[DenseBias] = ()
    scale: float = 1.0


def product(first: Terms, second: Terms) -> Terms:
    """Return the log-weights of the product of two kernels.

    Example:
        >>> import torch
        >>> from imgproc_attn.core import DotProduct, SpatialGaussian, grid_geometry
        >>> x, geometry = torch.rand(1, 2, 9, 16), grid_geometry(3, 3, 0, like=torch.empty(0))
        >>> terms = product(SpatialGaussian(2, (3, 3))(geometry, geometry, like=x), DotProduct(head_dim=16)(x, x))
        >>> len(terms.q), len(terms.position_distances)
        (1, 1)
    """
    biases = [*first.biases, *second.biases]
    for one, other in ((first, second), (second, first)):
        if _is_bias(one):
            return changed(other, biases=biases)
    return Terms(
        [*_scaled(first), *_scaled(second)],
        [*first.k, *second.k],
        [*first.distances, *second.distances],
        [*first.position_distances, *second.position_distances],
        sum_of(first.key_bias, second.key_bias),
        biases,
    )


def _is_bias(terms: Terms) -> bool:
    """Return whether there are no terms but dense biases."""
    return terms.key_bias is None and not any(map(len, (terms.q, terms.distances, terms.position_distances)))


def _scaled(terms: Terms) -> Sequence[Tensor]:
    """Return the query columns multiplied by the factor ``scale``."""
    return terms.q if terms.scale == 1.0 else [q * terms.scale for q in terms.q]


def sum_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two tensors, or the one that is not None."""
    if a is None:
        return b
    if b is None:
        return a
    return a + b
