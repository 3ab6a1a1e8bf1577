"""Filters whose weights are inner products of positive features, so that time and memory grow with the number of tokens.

``A_ij = <f_i, g_j> exp(b_j)``, divided by the sum over the row. No weight is computed on its own: the sum over the keys comes
first, ``f_i . sum_j g_j exp(b_j) v_j``. Under causality it runs up to the query, in chunks of tokens.

Each key divides its features by their largest, and keeps the logarithm of that in its own b_j. So nothing overflows, and no
result depends on later tokens, not even in rounding.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .bandwidths import at_least_float32
from .filters import hide, key_log_weights, products
from .terms import Terms, sum_of

__all__ = ["EluFeatures", "FeatureOperator", "RandomFeatures"]

# Number of tokens whose weights are computed pair by pair under causality.
CHUNK = 64
# Added to each feature, so that all weights are positive.
TINY = 1e-30


class RandomFeatures(nn.Module):
    """Filter of Performers: an estimate of the softmax by positive random features (FAVOR+, arXiv 2009.14794).

    For directions w_m from the normal distribution, ``exp(x.y)`` is the mean of ``exp(w_m.x - |x|^2/2) exp(w_m.y - |y|^2/2)``
    (lemma 1). A Gaussian kernel is the same with ``x = sqrt(2) q / h``, times factors of single tokens. Rows of A sum to 1. The
    error falls with the square root of the number of features, and grows exponentially with ``|x + y|^2``. So the filter
    takes one kernel on features, and of the positions in a layer only causal `Alibi`, which is exact.

    Directions are orthogonal in groups of d. They are fixed: a buffer, drawn once.

    Args:
        head_dim: Width d of a head.
        depth: Index of the block. Each block draws other directions.
        num_features: Number of directions. Default: ``d log d``, as in the paper.
        seed: Seed of the directions. They do not change torch's random state.

    Raises:
        TypeError: ``num_features`` or ``seed`` is not a whole number.
        ValueError: ``num_features`` is less than 1.

    Example:
        >>> from imgproc_attn.core import GaussianRange
        >>> x = torch.rand(1, 2, 100, 16)
        >>> operator = RandomFeatures(head_dim=16)(GaussianRange(num_heads=2, head_dim=16)(x, x), is_causal=True)
        >>> operator.apply(x).shape, operator.q.shape
        (torch.Size([1, 2, 100, 16]), torch.Size([1, 2, 100, 44]))
    """

    directions: Tensor

    def __init__(
        self, head_dim: int, depth: int = 0, num_features: int | None = None, seed: int = 0, device=None, dtype=None
    ) -> None:
        super().__init__()
        if num_features is None:
            num_features = max(1, int(head_dim * math.log(head_dim)))
        if check_whole("filter='random_features': num_features", num_features) < 1:
            raise ValueError(
                f"filter='random_features': num_features must be at least 1, got {num_features}. Leave it out for d log d."
            )
        self.seed = 1000 * check_whole("filter='random_features': seed", seed) + depth
        self.register_buffer("directions", torch.empty(num_features, head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions of the seed."""
        count, width = self.directions.shape
        self.directions.copy_(_orthogonal(count, width, self.seed))

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "FeatureOperator":
        """Return the operator of ``terms``.

        Args:
            terms: One kernel on features, and causal ALiBi.
            mask: Boolean mask of the keys (True: visible) or additive log-weights, broadcastable to ``[B, H, 1, M]``.
            is_causal: A query sees no key after its own. With fewer queries than keys, the queries are the last tokens.

        Raises:
            TypeError: ``mask`` is neither boolean nor floating point.
            ValueError: ``terms`` hold other terms or have another width, or the mask depends on the query.
        """
        return _random_features(terms, mask, is_causal, self.directions)

    def extra_repr(self) -> str:
        return f"num_features={self.directions.shape[0]}"


class EluFeatures(nn.Module):
    """Filter of linear transformers, ``A_ij = <f(q_i), f(k_j)>`` with ``f = elu + 1`` (arXiv 2006.16236). Rows of A sum to 1.

    It is no estimate of the softmax, but a kernel of its own on the columns of a dot product, which it does not scale.

    Example:
        >>> from imgproc_attn.core import DotProduct
        >>> x = torch.rand(1, 2, 100, 16)
        >>> EluFeatures()(DotProduct(head_dim=16)(x, x), is_causal=True).apply(x).shape
        torch.Size([1, 2, 100, 16])
    """

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "FeatureOperator":
        """Return the operator of ``terms``. Arguments and errors are those of `RandomFeatures`.

        Raises:
            TypeError: ``mask`` is neither boolean nor floating point.
            ValueError: ``terms`` hold a distance or other terms, or the mask depends on the query.
        """
        return _elu_features(terms, mask, is_causal)


class FeatureOperator(NamedTuple):
    """Operator ``A_ij = <q_i, k_j> exp(b_j)`` of positive features, divided by the sum over the row.

    Attributes:
        q: Features of the queries, ``[B, H, N, F]``.
        k: Features of the keys, ``[B, H, M, F]``.
        key_bias: b, ``[B, H, M, 1]``.
        is_causal: A query sees no key after its own. The queries are the last tokens.
    """

    q: Tensor
    k: Tensor
    key_bias: Tensor
    is_causal: bool

    def apply(self, v: Tensor) -> Tensor:
        values = F.pad(v.to(self.q.dtype), (0, 1), value=1.0)  # a column of ones, which becomes the sum over the row
        smooth = _causal_sums if self.is_causal else _sums
        u = smooth(self.q, self.k, self.key_bias, values)
        return (u[..., :-1] / u[..., -1:]).to(v.dtype)

    def dense(self) -> Tensor:
        log_weights = (self.q @ self.k.mT).log() + self.key_bias.mT
        return hide(log_weights, None, self.is_causal).softmax(dim=-1)


def _sums(q: Tensor, k: Tensor, key_bias: Tensor, v: Tensor) -> Tensor:
    """Return ``sum_j <q_i, k_j> exp(b_j) v_j`` up to a factor."""
    weights = (key_bias - key_bias.detach().amax(dim=2, keepdim=True)).exp()
    return q @ (k.mT @ (weights * v))


def _causal_sums(q: Tensor, k: Tensor, key_bias: Tensor, v: Tensor) -> Tensor:
    """Return ``sum_j <q_i, k_j> exp(b_j) v_j`` over the keys up to the query, up to a factor per row.

    The weights within a chunk are computed pair by pair. ``past`` is the sum ``k_j exp(b_j - shift) v_j^T`` of earlier keys.
    """
    start, largest = k.shape[2] - q.shape[2], key_bias.detach().cummax(dim=2).values
    past, shift, results = q.new_zeros(q.shape[-1], v.shape[-1]), largest[:, :, :1], []
    if start > 0:
        shift = largest[:, :, start - 1 : start]
        past = k[:, :, :start].mT @ ((key_bias[:, :, :start] - shift).exp() * v[:, :, :start])
    # The gradient of a slice is as large as the whole tensor. That of a split is not.
    chunks = zip(*(t[:, :, start:].split(CHUNK, dim=2) for t in (k, key_bias, v, largest)))
    for x, (y, bias, values, row) in zip(q.split(CHUNK, dim=2), chunks):
        last = row[:, :, -1:]
        near = x @ y.mT * hide(bias.mT - row, None, True).exp()
        results.append(near @ values + (shift - row).exp() * (x @ past))
        past = (shift - last).exp() * past + y.mT @ ((bias - last).exp() * values)
        shift = last
    return torch.cat(results, dim=2)


def _random_features(terms: Terms, mask: Tensor | None, is_causal: bool, directions: Tensor) -> FeatureOperator:
    x, y, key_bias = _balanced(terms, mask, is_causal)
    if x.shape[-1] != directions.shape[1]:
        raise ValueError(
            f"filter='random_features': columns must be as wide as the directions, {directions.shape[1]}, got {x.shape[-1]}. "
            f"Give head_dim={x.shape[-1]}."
        )
    (q, _), (k, size) = (_exponentials(t, directions.to(t.dtype)) for t in (x, y))
    return FeatureOperator(q, k, size if key_bias is None else size + key_bias, is_causal)


def _exponentials(x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``exp(w_m.x)`` divided by the largest of them, and the logarithm of this divisor times ``exp(-|x|^2/2)``."""
    exponents = products(x, directions, 1.0)
    largest = exponents.detach().amax(dim=-1, keepdim=True)
    return (exponents - largest).exp() + TINY, largest - x.square().sum(dim=-1, keepdim=True) / 2


def _elu_features(terms: Terms, mask: Tensor | None, is_causal: bool) -> FeatureOperator:
    key_bias = _key_bias("elu_features", terms, mask, is_causal)
    if len(terms.distances) > 0:
        raise ValueError(
            "filter='elu_features': kernels must be inner products, got a distance. Use kernel='dot_product', or "
            "filter='random_features'."
        )
    q, k = (F.elu(at_least_float32(block)) + 1 + TINY for block in (terms.q[0], terms.k[0]))
    zero = torch.zeros_like(k[..., :1])
    return FeatureOperator(q, k, zero if key_bias is None else zero + key_bias, is_causal)


def _balanced(terms: Terms, mask: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return columns x and y of equal scale and a key bias b, with the log-weights ``x.y + b`` up to a constant per row."""
    key_bias = _key_bias("random_features", terms, mask, is_causal)
    if len(terms.q) > 0:
        x, y = (at_least_float32(block) * terms.scale**0.5 for block in (terms.q[0], terms.k[0]))
        return x, y, key_bias
    (distance,) = terms.distances
    x, y = at_least_float32(distance.q), at_least_float32(distance.k)
    root = (2 * distance.scale).sqrt().to(x.dtype)
    x, y = root * x, root * y
    return x, y, sum_of(key_bias, y.square().sum(dim=-1, keepdim=True) / -2)


def _key_bias(name: str, terms: Terms, mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Return the log-weights per key of mask, ALiBi and ``terms``. Fail if there is not exactly one kernel on features."""
    biases = [bias.causal_key_bias() if is_causal and hasattr(bias, "causal_key_bias") else None for bias in terms.biases]
    if len(terms.q) + len(terms.distances) != 1 or len(terms.position_distances) > 0 or any(b is None for b in biases):
        raise ValueError(
            f"filter={name!r}: the layer must have one kernel on features, and of positions only causal ALiBi, got "
            f"{len(terms.q)} blocks of columns, {len(terms.distances)} distances of features, {len(terms.position_distances)} "
            f"of positions and {len(biases)} dense biases. Use positions='absolute', 'sincos' or 'rotary', or filter='softmax'."
        )
    key_bias = sum_of(terms.key_bias, key_log_weights(name, mask))
    for bias in biases:
        key_bias = sum_of(key_bias, bias)
    return key_bias


def _orthogonal(count: int, width: int, seed: int) -> Tensor:
    """Return normal vectors ``[count, width]`` in float64. Groups of ``width`` of them are orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.empty(width, width, dtype=torch.float64)
    groups = [nn.init.orthogonal_(square.clone(), generator=generator) for _ in range(-(-count // width))]
    lengths = torch.randn(count, width, dtype=torch.float64, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(groups)[:count] * lengths


torch.fx.wrap("_random_features")
torch.fx.wrap("_elu_features")
