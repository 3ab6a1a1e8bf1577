"""Filters: from log-weights to the linear operator A that smooths values.

``A_ij = K_ij / sum_j K_ij``, Milanfar's ``W = D^-1 K``: a softmax over log K, row-stochastic. `SoftmaxFilter` sums over all
tokens, `WindowedFilter` over a window of pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bandwidths import at_least_float32
from .checks import check_flag
from .lifting import lift, zero_columns
from .terms import Distance, Terms


class Operator(NamedTuple):
    """A filter with its weights frozen: what boosting applies several times.

    Attributes:
        q: Lifted query columns ``[B, H, N, C]``.
        k: Lifted key columns ``[B, H, N, C]``.
        scale: Factor on their inner products.
        mask: Dense log-weights or boolean mask, broadcastable to ``[B, H, N, N]``, or None.
        weights: Dense A ``[B, H, N, N]``, dropout applied, if the filter is not fused; else None.
        is_causal: Token i sees tokens 0 to i only.
    """

    q: Tensor
    k: Tensor
    scale: float
    mask: Tensor | None
    weights: Tensor | None
    is_causal: bool


class SoftmaxFilter(nn.Module):
    """The exact, row-stochastic filter ``A = softmax(log K)``.

    Args:
        fused: Apply A through `torch.nn.functional.scaled_dot_product_attention`, never forming it. Otherwise A is a dense
            tensor, in plain code on the same columns: the way to look at it and to hook it, and the only way to drop the same
            weights in each pass of a boosted filter (the fused way draws them anew).
        dropout: Probability of dropping a weight in training.
    """

    def __init__(self, fused: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.fused = check_flag("fused", fused)
        self.attn_drop = nn.Dropout(dropout)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Operator:
        """Freeze the operator of ``terms``.

        Args:
            terms: Factored log-weights.
            mask: Boolean (True: may be seen) or additive log-weights, broadcastable to ``[B, H, N, N]``.
            is_causal: Token i sees tokens 0 to i only.
        """
        q, k = lift(terms)
        mask, is_causal = _merge(terms.bias, mask, is_causal, q.shape[2])
        if self.fused:
            return Operator(q, k, terms.scale, mask, None, is_causal)
        weights = self.attn_drop(_dense_weights(q, k, terms.scale, mask, is_causal))
        return Operator(q, k, terms.scale, mask, weights, is_causal)

    def smooth(self, operator: Operator, v: Tensor) -> Tensor:
        """``A v`` for values ``[B, H, N, D]``, in their type."""
        weights = operator.weights
        if weights is not None:
            return weights.to(v.dtype) @ v
        dropout = self.attn_drop.p if self.training else 0.0
        return _fused_smooth(operator.q, operator.k, operator.scale, v, operator.mask, dropout, operator.is_causal)

    def weights(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The dense operator A, ``[B, H, N, N]`` in float32 or float64, without dropout."""
        q, k = lift(terms)
        mask, is_causal = _merge(terms.bias, mask, is_causal, q.shape[2])
        return _dense_weights(q, k, terms.scale, mask, is_causal)


class WindowedFilter(nn.Module):
    """The filter of a kernel of distances over a window around each pixel, ``A_ij = 0`` outside; cut off at the border.

    Memory is a few images, whatever the window; time grows with its area.

    Args:
        window: Log-weight of each place of the window, ``[H, wy, wx]`` with odd sides: a kernel on positions.
    """

    window: Tensor

    def __init__(self, window: Tensor) -> None:
        super().__init__()
        self.register_buffer("window", window)

    def forward(self, terms: Terms) -> Distance:
        """The distance of ``terms``, of features with themselves.

        Raises:
            ValueError: ``terms`` hold more than a distance, or one of two different features.
        """
        distance = terms.distance
        if distance is None or len(terms.q) > 0 or terms.key_bias is not None or terms.bias is not None:
            raise ValueError("WindowedFilter takes a kernel of a distance alone; give positions as its window.")
        if distance.q is not distance.k:
            raise ValueError("WindowedFilter takes features with themselves, q and k one tensor, so that no row is empty.")
        return distance

    def smooth(self, distance: Distance, v: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """``A v`` for values ``[B, H, N, D]`` on a grid of N = height x width pixels."""
        height, width = grid_size
        # planes, each contiguous: three times as fast as pixels with their channels
        y, values = (t.transpose(2, 3).unflatten(3, grid_size).contiguous() for t in (distance.k, v))
        numerator, denominator = torch.zeros_like(values), torch.zeros_like(values[:, :, :1])
        scale = distance.scale[..., None].to(y.dtype)
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


def _masked(log_weights: Tensor, mask: Tensor) -> Tensor:
    """Log-weights under a boolean (True: may be seen) or additive mask."""
    return log_weights.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else log_weights + mask


def _past(length: int, like: Tensor) -> Tensor:
    """Boolean mask of causality, ``[N, N]``."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).tril()


def _merge(bias: Tensor | None, mask: Tensor | None, is_causal: bool, length: int) -> tuple[Tensor | None, bool]:
    """A dense bias, a mask and causality as one mask; causality alone stays a flag, which fused attention knows."""
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"The mask is {mask.dtype}, but must be bool (True: may be seen) or log-weights; give mask.bool().")
    if bias is not None:
        mask = bias if mask is None else _masked(bias, mask)
    if mask is None or not is_causal:
        return mask, is_causal
    past = _past(length, mask)
    return mask & past if mask.dtype == torch.bool else _masked(mask, past), False


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
    """Dense ``log K``, up to a constant in each row, ``[B, H, N, N]`` in float32 or float64."""
    q, k = lift(terms)
    dense = _products(q, k, terms.scale)
    return dense if terms.bias is None else dense + terms.bias


def _dense_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Softmax over explicit log-weights, in float32 at least."""
    dense = _products(q, k, scale)
    if mask is not None:
        dense = _masked(dense, mask)
    if is_causal:
        dense = _masked(dense, _past(dense.shape[-1], dense))
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
