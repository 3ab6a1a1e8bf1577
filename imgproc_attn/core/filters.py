"""Filters: from log-weights to the linear operator A that smooths values.

``A_ij = K_ij / sum_j K_ij``, Milanfar's ``W = D^-1 K``: a softmax over log K, row-stochastic. A filter is a module
``filter(terms, mask, is_causal) -> Operator``. Everything else (boosting, diagnostics) knows only the `Operator`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bandwidths import at_least_float32
from .lifting import lift, zero_columns
from .terms import DenseBias, Distance, Terms


class Operator(Protocol):
    """A filter with its weights frozen: the linear operator A, which boosting applies several times."""

    def apply(self, v: Tensor) -> Tensor:
        """Return ``A v`` for values ``[B, H, M, D]``: ``[B, H, N, D]`` in their type."""
        ...

    def dense(self) -> Tensor:
        """Return A ``[B, H, N, M]`` in float32 or float64, without dropout."""
        ...


class FusedSoftmax(NamedTuple):
    """The softmax of lifted columns, applied through fused attention.

    Attributes:
        q: Query columns ``[B, H, N, C]``.
        k: Key columns ``[B, H, M, C]``.
        scale: Factor on their inner products.
        mask: Dense log-weights or boolean mask, broadcastable to ``[B, H, N, M]``, or None.
        is_causal: Token i sees tokens 0 to i only.
        dropout: Probability of dropping a weight; each application draws again.
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
    """A as a dense tensor.

    Attributes:
        weights: ``[B, H, N, M]``.
        dropped: The same with dropout, which is the same in each application.
    """

    weights: Tensor
    dropped: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return self.dropped.to(v.dtype) @ v

    def dense(self) -> Tensor:
        return self.weights


class SoftmaxFilter(nn.Module):
    """The exact, row-stochastic filter ``A = softmax(log K)``, applied through `scaled_dot_product_attention`.

    A is never formed.

    Args:
        attn_drop: Probability of dropping a weight in training. Each step of a boosted filter drops other weights.
    """

    def __init__(self, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> FusedSoftmax:
        """Freeze the operator of ``terms``.

        Args:
            terms: Factored log-weights of N queries and M keys.
            mask: Boolean (True: may be seen) or additive log-weights, broadcastable to ``[B, H, N, M]``.
            is_causal: A query sees no key after its own. With fewer queries than keys, the queries are the last tokens.
        """
        return _fuse(terms, mask, is_causal, self.attn_drop.p if self.training else 0.0)


class DenseFilter(nn.Module):
    """The exact filter ``A = softmax(log K)`` as a dense tensor, in plain code on the same columns.

    Use it to look at A, to hook it, to drop the same weights in each step of a boosted filter, and on grids of a few dozen
    tokens, where it is faster.

    Args:
        attn_drop: Probability of dropping a weight in training.
    """

    def __init__(self, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Weights:
        """Compute the operator of ``terms``; arguments are those of `SoftmaxFilter`."""
        weights = _fuse(terms, mask, is_causal).dense()
        return Weights(weights, self.attn_drop(weights))


class WindowedFilter(nn.Module):
    """The filter of a kernel of distances over a window around each pixel, ``A_ij = 0`` outside; cut off at the border.

    Memory is a few images, whatever the window; time grows with its area.

    Args:
        window: Log-weight of each place of the window, ``[H, wy, wx]`` with odd sides: a kernel on positions.
        grid_size: (height, width) of the image in pixels.
    """

    window: Tensor

    def __init__(self, window: Tensor, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("window", window)
        self.grid_size = grid_size

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "WindowedOperator":
        """Freeze the operator of ``terms``, of features with themselves.

        Raises:
            ValueError: ``terms`` hold more than one distance, or a distance of two different features; or a mask is given.
        """
        if mask is not None or is_causal:
            raise ValueError("WindowedFilter must have no mask and is_causal=False, got one. Use SoftmaxFilter for masks.")
        if len(terms.distances) != 1 or any(map(len, (terms.q, terms.places, terms.biases))) or terms.key_bias is not None:
            raise ValueError("WindowedFilter takes one distance of features only; give positions as its window.")
        distance = terms.distances[0]
        if distance.q is not distance.k:
            raise ValueError("WindowedFilter takes features with themselves, q and k one tensor, so that no row is empty.")
        return WindowedOperator(distance, self.window, self.grid_size)


class WindowedOperator(NamedTuple):
    """A filter over windows of pixels.

    Attributes:
        distance: Of features with themselves.
        window: Log-weight of each place of the window, ``[H, wy, wx]``.
        grid_size: (height, width) of the image in pixels.
    """

    distance: Distance
    window: Tensor
    grid_size: tuple[int, int]

    def apply(self, v: Tensor) -> Tensor:
        height, width = self.grid_size
        # planes, each contiguous: three times as fast as pixels with their channels
        y, values = (t.transpose(2, 3).unflatten(3, self.grid_size).contiguous() for t in (self.distance.k, v))
        numerator, denominator = torch.zeros_like(values), torch.zeros_like(values[:, :, :1])
        scale = self.distance.scale[..., None].to(y.dtype)
        rows, columns = self.window.shape[1] // 2, self.window.shape[2] // 2
        for dy in range(-min(rows, height - 1), min(rows, height - 1) + 1):
            for dx in range(-min(columns, width - 1), min(columns, width - 1) + 1):
                here = (..., slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
                there = (..., slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx)))
                squared = (y[here] - y[there]).square_().sum(dim=2, keepdim=True)
                place = self.window[:, dy + rows, dx + columns][:, None, None, None]
                weight = torch.addcmul(place, squared, -scale).exp_()
                denominator[here].add_(weight)
                numerator[here].addcmul_(weight, values[there])
        return (numerator / denominator).flatten(3).transpose(2, 3)

    def dense(self) -> Tensor:
        batch, heads, pixels, _ = self.distance.k.shape
        return self.apply(
            torch.eye(pixels, dtype=self.distance.k.dtype, device=self.window.device).expand(batch, heads, -1, -1)
        )


def _fuse(terms: Terms, mask: Tensor | None, is_causal: bool, dropout: float = 0.0) -> FusedSoftmax:
    """Lift ``terms`` to columns, and join all that is dense in one mask."""
    q, k = lift(terms)
    mask, is_causal = _merge(terms.biases, mask, is_causal, q, k)
    return FusedSoftmax(q, k, terms.scale, mask, is_causal, dropout)


def _masked(log_weights: Tensor, mask: Tensor) -> Tensor:
    """Log-weights under a boolean (True: may be seen) or additive mask."""
    return log_weights.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else log_weights + mask


def _past(q: Tensor, k: Tensor) -> Tensor:
    """Return the boolean mask of causality, ``[N, M]``; the queries are the last of the tokens."""
    queries, keys = q.shape[2], k.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)


def _merge(
    biases: Sequence[DenseBias], mask: Tensor | None, is_causal: bool, q: Tensor, k: Tensor
) -> tuple[Tensor | None, bool]:
    """Return dense biases, a mask and causality as one mask; a flag stays where fused attention knows it."""
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"The mask is {mask.dtype}, but must be bool (True: may be seen) or log-weights; give mask.bool().")
    if len(biases) > 0:
        bias = biases[0].dense()
        for other in biases[1:]:
            bias = bias + other.dense()
        mask = bias if mask is None else _masked(bias, mask)
    if not is_causal or (mask is None and q.shape[2] == k.shape[2]):
        return mask, is_causal
    past = _past(q, k)
    if mask is None or mask.dtype == torch.bool:
        return past if mask is None else mask & past, False
    return _masked(mask, past), False


def _products(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Explicit inner products of columns, in float32 at least, under autocast too: columns of places are large numbers.

    TF32 would round them likewise; it is off unless ``torch.backends.cuda.matmul`` says otherwise.
    """
    q, k = at_least_float32(q), at_least_float32(k).transpose(-2, -1)
    if torch.amp.is_autocast_available(q.device.type) and torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return (q @ k) * scale
    return (q @ k) * scale


def log_weights(terms: Terms) -> Tensor:
    """Return dense ``log K``, up to a constant per row, ``[B, H, N, M]`` in float32 or float64."""
    q, k = lift(terms)
    dense = _products(q, k, terms.scale)
    for bias in terms.biases:
        dense = dense + bias.dense()
    return dense


def _dense_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Softmax over explicit log-weights, in float32 at least."""
    dense = _products(q, k, scale)
    if mask is not None:
        dense = _masked(dense, mask)
    if is_causal:
        dense = _masked(dense, _past(q, k))
    return dense.softmax(dim=-1)


def pad_columns(x: Tensor, width: int) -> Tensor:
    """``x`` with zero columns appended up to ``width``."""
    if x.shape[-1] >= width:
        return x
    return torch.cat([x, zero_columns(x, x.shape[0], width - x.shape[-1])], dim=-1)  # one pass over memory, F.pad takes two


def _fused_smooth(
    q: Tensor, k: Tensor, scale: float, v: Tensor, mask: Tensor | None, dropout: float, is_causal: bool
) -> Tensor:
    """Scaled dot-product attention; v is padded to the width of q and k, without which CPUs leave the fused path.

    An additive mask is taken in the type of q, as that function demands.
    """
    width = v.shape[-1]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    padded = pad_columns(v, q.shape[-1])
    smoothed = F.scaled_dot_product_attention(q, k, padded, mask, dropout, is_causal, scale=scale)
    return smoothed[..., :width]


torch.fx.wrap("lift")
torch.fx.wrap("_merge")
torch.fx.wrap("_dense_weights")
torch.fx.wrap("_fused_smooth")
