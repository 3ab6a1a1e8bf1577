"""Filters: from log-weights to the linear operator A that smooths values.

``A_ij = K_ij / sum_j K_ij``, in Milanfar's notation ``W = D^-1 K``. This is a softmax over log K, so each row sums to 1.
A filter is a module ``filter(terms, mask, is_causal) -> Operator``. With ``needs_geometry = True`` it gets the geometry as a
fourth argument. All other code uses only the `Operator`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.named_tuples import changed
from .bandwidths import at_least_float32
from .lifting import lift, zero_columns
from .terms import DenseBias, Distance, Terms, product

__all__ = ["DenseFilter", "Operator", "SoftmaxFilter", "WindowedFilter", "log_weights"]

# Log-weight of keys that a mask of keys hides.
HIDDEN = -1e30


class Operator(Protocol):
    """Linear operator A of a filter with frozen weights. Boosting applies it several times."""

    def apply(self, v: Tensor) -> Tensor:
        """Return ``A v``, ``[B, H, N, D]``, for values ``[B, H, M, D]``, in their dtype."""
        ...

    def dense(self) -> Tensor:
        """Return A ``[B, H, N, M]`` in float32 or float64, without dropout."""
        ...


class FusedSoftmax(NamedTuple):
    """Softmax of the products of lifted columns, applied through fused attention.

    Attributes:
        q: Query columns ``[B, H, N, C]``.
        k: Key columns ``[B, H, M, C]``.
        scale: Factor on the inner products of the columns.
        mask: Dense log-weights or boolean mask, broadcastable to ``[B, H, N, M]``, or None.
        is_causal: Token i sees tokens 0 to i only.
        dropout: Probability of dropping a weight. Each application draws again.
    """

    q: Tensor
    k: Tensor
    scale: float
    mask: Tensor | None
    is_causal: bool
    dropout: float

    def apply(self, v: Tensor) -> Tensor:
        return _fused_smooth(self.q, self.k, self.scale, v, self.mask, self.dropout, self.is_causal)

    def dense(self) -> Tensor:
        return _dense_weights(self.q, self.k, self.scale, self.mask, self.is_causal)


class Weights(NamedTuple):
    """Operator A as a dense tensor.

    Attributes:
        weights: Filter weights ``[B, H, N, M]``.
        dropped: The weights after dropout, drawn once, so all applications drop the same weights.
    """

    weights: Tensor
    dropped: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return self.dropped.to(v.dtype) @ v

    def dense(self) -> Tensor:
        return self.weights


class SoftmaxFilter(nn.Module):
    """Exact filter ``A = softmax(log K)``, applied through torch's `scaled_dot_product_attention`. Rows of A sum to 1.

    A is never stored as a matrix.

    Args:
        attn_drop: Probability of dropping a weight in training. Each step of a boosted filter drops other weights.

    Example:
        >>> from imgproc_attn.core import GaussianRange
        >>> x = torch.rand(1, 2, 9, 16)
        >>> operator = SoftmaxFilter()(GaussianRange(num_heads=2, head_dim=16)(x, x))
        >>> operator.apply(x).shape, operator.dense().shape
        (torch.Size([1, 2, 9, 16]), torch.Size([1, 2, 9, 9]))
    """

    def __init__(self, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> FusedSoftmax:
        """Return the operator of ``terms``.

        Args:
            terms: Factored log-weights of N queries and M keys.
            mask: Boolean mask (True: visible) or additive log-weights, broadcastable to ``[B, H, N, M]``.
            is_causal: A query sees no key after its own. With fewer queries than keys, the queries are the last tokens.

        Raises:
            TypeError: ``mask`` is neither boolean nor floating point.
        """
        return _fuse(terms, mask, is_causal, self.attn_drop.p if self.training else 0.0)


class DenseFilter(nn.Module):
    """Exact filter ``A = softmax(log K)`` as a dense tensor, computed from the same columns in plain tensor code.

    Use it in these cases:

    - You want to look at A, or to register a hook on it.
    - Each step of a boosted filter must drop the same weights.
    - The grid has a few dozen tokens. This filter is then faster than `SoftmaxFilter`.

    Args:
        attn_drop: Probability of dropping a weight in training.

    Example:
        >>> from imgproc_attn.core import DotProduct
        >>> same = torch.ones(1, 1, 2, 4)
        >>> DenseFilter()(DotProduct(head_dim=4)(same, same)).weights.tolist()
        [[[[0.5, 0.5], [0.5, 0.5]]]]
    """

    def __init__(self, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Weights:
        """Compute the operator of ``terms``. Arguments and errors are those of `SoftmaxFilter`."""
        weights = _fuse(terms, mask, is_causal).dense()
        return Weights(weights, self.attn_drop(weights))


class WindowedFilter(nn.Module):
    """Filter of a distance kernel over a window around each pixel. Outside the window ``A_ij = 0``.

    At the border, the window is cut off. It needs memory for a few images, whatever the window size. Time grows with the area
    of the window.

    Args:
        window: Log-weights of the window, ``[H, wy, wx]`` with odd sides. They act as a kernel on positions.
        grid_size: (height, width) of the image in pixels.

    Example:
        >>> from imgproc_attn.core import GaussianRange
        >>> pixels = torch.rand(1, 1, 8 * 8, 3)
        >>> terms = GaussianRange(num_heads=1, head_dim=3)(pixels, pixels)
        >>> WindowedFilter(torch.zeros(1, 5, 5), grid_size=(8, 8))(terms).apply(pixels).shape
        torch.Size([1, 1, 64, 3])
    """

    window: Tensor

    def __init__(self, window: Tensor, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("window", window)
        self.grid_size = grid_size

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "WindowedOperator":
        """Return the operator of ``terms``, a distance of features to themselves.

        Raises:
            ValueError: ``terms`` is not exactly one distance, the distance is between two different features, or a mask or
                causality is given.
        """
        if mask is not None or is_causal:
            raise ValueError("WindowedFilter must get no mask and is_causal=False, got one. Use SoftmaxFilter for masks.")
        if (
            len(terms.distances) != 1
            or any(map(len, (terms.q, terms.position_distances, terms.biases)))
            or terms.key_bias is not None
        ):
            raise ValueError("Terms must be one distance of features only, got other terms. Give positions as window=.")
        distance = terms.distances[0]
        if distance.q is not distance.k:
            raise ValueError("q and k of a WindowedFilter must be one tensor, got two. Give one, so that no row is empty.")
        return WindowedOperator(distance, self.window, self.grid_size)


class WindowedOperator(NamedTuple):
    """Operator of a filter over windows of pixels.

    Attributes:
        distance: Distance of features to themselves.
        window: Log-weights of the window, ``[H, wy, wx]``.
        grid_size: (height, width) of the image in pixels.
    """

    distance: Distance
    window: Tensor
    grid_size: tuple[int, int]

    def apply(self, v: Tensor) -> Tensor:
        height, width = self.grid_size
        # Contiguous planes are three times as fast as pixels that hold their channels.
        y, values = (t.transpose(2, 3).unflatten(3, self.grid_size).contiguous() for t in (self.distance.k, v))
        numerator, denominator = torch.zeros_like(values), torch.zeros_like(values[:, :, :1])
        scale = self.distance.scale[..., None].to(y.dtype)
        rows, columns = self.window.shape[1] // 2, self.window.shape[2] // 2
        for dy in range(-min(rows, height - 1), min(rows, height - 1) + 1):
            for dx in range(-min(columns, width - 1), min(columns, width - 1) + 1):
                here = (..., slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
                there = (..., slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx)))
                squared = (y[here] - y[there]).square_().sum(dim=2, keepdim=True)
                spatial = self.window[:, dy + rows, dx + columns][:, None, None, None]
                weight = torch.addcmul(spatial, squared, -scale).exp_()
                denominator[here].add_(weight)
                numerator[here].addcmul_(weight, values[there])
        return (numerator / denominator).flatten(3).transpose(2, 3)

    def dense(self) -> Tensor:
        batch, heads, pixels, _ = self.distance.k.shape
        return self.apply(
            torch.eye(pixels, dtype=self.distance.k.dtype, device=self.window.device).expand(batch, heads, -1, -1)
        )


def _fuse(terms: Terms, mask: Tensor | None, is_causal: bool, dropout: float = 0.0) -> FusedSoftmax:
    """Lift ``terms`` to columns, and combine dense biases, mask and causality into one mask."""
    terms = in_causal_form(terms, is_causal)
    q, k = lift(terms)
    mask, is_causal = _merge(terms.biases, mask, is_causal, q, k)
    return FusedSoftmax(q, k, terms.scale, mask, is_causal, dropout)


def in_causal_form(terms: Terms, is_causal: bool) -> Terms:
    """Return terms in which dense biases that have a causal form are columns, if the filter is causal.

    These columns come first, because their sum is exact only before features join it. Distances of positions come first for
    the same reason, so terms with both keep their dense biases.
    """
    if not is_causal or len(terms.position_distances) > 0:
        return terms
    forms = [(bias, bias.causal_form() if hasattr(bias, "causal_form") else None) for bias in terms.biases]
    terms = changed(terms, biases=[bias for bias, form in forms if form is None])
    for _, form in forms:
        if form is not None:
            terms = product(form, terms)
    return terms


def _masked(log_weights: Tensor, mask: Tensor) -> Tensor:
    """Return log-weights with a boolean (True: visible) or additive mask applied."""
    return log_weights.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else log_weights + mask


def check_mask(mask: Tensor | None) -> None:
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"mask must be bool (True: visible) or floating point, got {mask.dtype}. Give mask.bool().")


def check_key_mask(name: str, mask: Tensor) -> None:
    """Fail if the filter of this name gets a mask that is not one of keys, the same for all queries.

    Raises:
        TypeError: ``mask`` is neither boolean nor floating point.
        ValueError: ``mask`` has another shape than ``[1 or B, 1 or H, 1, M]``.
    """
    check_mask(mask)
    if mask.dim() != 4 or mask.shape[2] != 1:
        raise ValueError(
            f"filter={name!r}: mask must hide keys from all queries, with the shape [batch, heads, 1, keys], got "
            f"{list(mask.shape)}. Use filter='softmax' for other masks."
        )


def key_log_weights(name: str, mask: Tensor | None) -> Tensor | None:
    """Return a mask of keys as log-weights ``[1 or B, 1 or H, M, 1]``, or None. Errors are those of `check_key_mask`.

    They are finite, because differences of infinities are not numbers.
    """
    if mask is None:
        return None
    check_key_mask(name, mask)
    mask = torch.where(mask, 0.0, HIDDEN) if mask.dtype == torch.bool else at_least_float32(mask).clamp(min=HIDDEN)
    return mask.mT


def with_key_bias(terms: Terms, key_bias: Tensor | None) -> Terms:
    """Return ``terms`` times a factor per key, the exponential of ``key_bias`` ``[1 or B, 1 or H, M, 1]``."""
    if key_bias is None:
        return terms
    return product(Terms(key_bias=key_bias.expand(-1, first_keys(terms).shape[1], -1, -1)), terms)


def first_keys(terms: Terms) -> Tensor:
    """Return the keys ``[B, H, M, d]`` of the first kernel on features."""
    return terms.k[0] if len(terms.k) > 0 else terms.distances[0].k


def _past(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return the causal boolean mask ``[N, M]``. The queries are the last N of the M tokens."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=keys - queries)


def _merge(
    biases: Sequence[DenseBias], mask: Tensor | None, is_causal: bool, q: Tensor, k: Tensor
) -> tuple[Tensor | None, bool]:
    """Combine dense biases, mask and causality into one mask.

    Returns:
        The mask or None, and ``is_causal``. The latter is True only if fused attention can apply causality itself.

    Raises:
        TypeError: ``mask`` is neither boolean nor floating point.
    """
    check_mask(mask)
    if len(biases) > 0:
        bias = biases[0].dense()
        for other in biases[1:]:
            bias = bias + other.dense()
        mask = bias if mask is None else _masked(bias, mask)
    if not is_causal or (mask is None and q.shape[2] == k.shape[2]):
        return mask, is_causal
    if q.shape[2] == 1:  # The last token sees all keys.
        return mask, False
    past = _past(q.shape[2], k.shape[2], q.device)
    if mask is None or mask.dtype == torch.bool:
        return past if mask is None else mask & past, False
    return _masked(mask, past), False


def products(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return the inner products of columns in float32 or float64, also under autocast.

    Columns of positions are large numbers, which lower precision would round too much. TF32 would round them too. It is off
    unless you turn it on in ``torch.backends.cuda.matmul``.
    """
    q, k = at_least_float32(q), at_least_float32(k).transpose(-2, -1)
    if q.device.type != "meta" and torch.is_autocast_enabled(q.device.type):  # the device meta has no autocast
        with torch.autocast(q.device.type, enabled=False):
            return (q @ k) * scale
    return (q @ k) * scale


def log_weights(terms: Terms) -> Tensor:
    """Return log K as a dense tensor ``[B, H, N, M]``, in float32 or float64.

    Each row may differ from log K by a constant. The softmax over the row removes this constant.
    """
    q, k = lift(terms)
    dense = products(q, k, terms.scale)
    for bias in terms.biases:
        dense = dense + bias.dense()
    return dense


def _dense_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the softmax of dense log-weights, in float32 or float64."""
    return hide(products(q, k, scale), mask, is_causal).softmax(dim=-1)


def hide(log_weights: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return log-weights ``[B, H, N, M]`` that are minus infinity where a mask or causality hides a key.

    Raises:
        TypeError: ``mask`` is neither boolean nor floating point.
    """
    check_mask(mask)
    if mask is not None:
        log_weights = _masked(log_weights, mask)
    if is_causal:
        log_weights = _masked(log_weights, _past(log_weights.shape[-2], log_weights.shape[-1], log_weights.device))
    return log_weights


def pad_columns(x: Tensor, width: int) -> Tensor:
    """Return ``x`` with zero columns appended up to ``width``."""
    if x.shape[-1] >= width:
        return x
    return torch.cat([x, zero_columns(x, x.shape[0], width - x.shape[-1])], dim=-1)  # F.pad would pass over memory twice


def _fused_smooth(
    q: Tensor, k: Tensor, scale: float, v: Tensor, mask: Tensor | None, dropout: float, is_causal: bool
) -> Tensor:
    """Return scaled dot-product attention of values that are padded to the width of q and k.

    Without the padding, CPUs do not use the fused implementation. torch requires an additive mask in the dtype of q.
    """
    if q.dtype != v.dtype:  # columns in float32, whose sums must not be rounded
        with torch.autocast(q.device.type, enabled=False):
            return _fused_smooth(q, k, scale, v.to(q.dtype), mask, dropout, is_causal).to(v.dtype)
    width = v.shape[-1]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    padded = pad_columns(v, q.shape[-1])
    smoothed = F.scaled_dot_product_attention(q, k, padded, mask, dropout, is_causal, scale=scale)
    return smoothed[..., :width]


torch.fx.wrap("in_causal_form")
torch.fx.wrap("lift")
torch.fx.wrap("_merge")
torch.fx.wrap("_dense_weights")
torch.fx.wrap("_fused_smooth")
