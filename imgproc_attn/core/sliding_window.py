"""Softmax over a window of neighboring tokens, in time and memory that grow with the number of tokens."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .filters import FusedSoftmax, hide, in_causal_form, key_log_weights, products, with_key_bias
from .lifting import lift
from .terms import Terms

__all__ = ["SlidingWindow"]


class SlidingWindow(nn.Module):
    """Exact softmax filter over the nearest tokens (Longformer, arXiv 2004.05150). Rows of A sum to 1.

    Tokens count in their order, as on a line. Under causality, a token sees itself and ``window - 1`` tokens before it.
    Otherwise it also sees as many after it. Tokens are cut into blocks of ``window``. Each block attends to itself and to its
    neighbors, through fused attention.

    Args:
        window: Number of tokens on one side, with the token itself.
        attn_drop: Probability of dropping a weight in training.

    Raises:
        TypeError: ``window`` is not a whole number.
        ValueError: ``window`` is less than 1.

    Example:
        >>> from imgproc_attn.core import DotProduct
        >>> x = torch.rand(1, 2, 100, 16)
        >>> weights = SlidingWindow(window=10)(DotProduct(head_dim=16)(x, x), is_causal=True).dense()
        >>> (weights[0, 0, 50] > 0).nonzero().flatten().tolist()
        [41, 42, 43, 44, 45, 46, 47, 48, 49, 50]
    """

    def __init__(self, window: int = 256, attn_drop: float = 0.0) -> None:
        super().__init__()
        if check_whole("filter='sliding_window': window", window) < 1:
            raise ValueError(f"filter='sliding_window': window must be at least 1, got {window}. Give a number of tokens.")
        self.window = int(window)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "SlidingOperator":
        """Return the operator of ``terms``.

        Args:
            terms: Factored log-weights of N queries and M keys. The queries are the last N of the M tokens.
            mask: Boolean mask of the keys (True: visible) or additive log-weights, broadcastable to ``[B, H, 1, M]``.
            is_causal: A query sees no key after its own.

        Raises:
            TypeError: ``mask`` is neither boolean nor floating point.
            ValueError: ``terms`` hold dense biases other than causal ALiBi, or the mask depends on the query.
        """
        return _sliding(terms, mask, is_causal, self.window, self.attn_drop.p if self.training else 0.0)

    def extra_repr(self) -> str:
        return f"window={self.window}"


class SlidingOperator(NamedTuple):
    """Softmax of the products of lifted columns, over a window of tokens.

    Attributes:
        q: Query columns ``[B, H, N, C]``.
        k: Key columns ``[B, H, M, C]``.
        scale: Factor on the inner products of the columns.
        window: Number of tokens on one side, with the token itself.
        is_causal: A query sees no key after its own.
        dropout: Probability of dropping a weight. Each application draws again.
    """

    q: Tensor
    k: Tensor
    scale: float
    window: int
    is_causal: bool
    dropout: float

    def apply(self, v: Tensor) -> Tensor:
        batch, heads, queries, _ = self.q.shape
        keys = min(self.k.shape[2], queries + self.window - 1)  # those that a query sees
        q = _blocks(F.pad(self.q, (0, 0, keys - queries, 0)), self.window)
        k, values = (_with_neighbors(_blocks(t[:, :, -keys:], self.window), self.is_causal) for t in (self.k, v))
        mask = _visible(keys, self.window, self.is_causal, v.device)
        u = FusedSoftmax(q, k, self.scale, mask, False, self.dropout).apply(values)
        return u.flatten(1, 2)[:, keys - queries : keys].unflatten(0, (batch, heads))

    def dense(self) -> Tensor:
        log_weights = products(self.q, self.k, self.scale)
        i, j = (torch.arange(n, device=self.q.device) for n in log_weights.shape[-2:])
        near = (i[:, None] + len(j) - len(i) - j).abs() < self.window
        return hide(log_weights, near, self.is_causal).softmax(dim=-1)


def _sliding(terms: Terms, mask: Tensor | None, is_causal: bool, window: int, dropout: float) -> SlidingOperator:
    terms = in_causal_form(with_key_bias(terms, key_log_weights("sliding_window", mask)), is_causal)
    if len(terms.biases) > 0:
        raise ValueError(
            f"filter='sliding_window': kernels must not be dense biases, got {len(terms.biases)}. Use "
            "positions='spatial_gaussian', causal 'alibi', 'absolute', 'sincos' or 'rotary', or filter='softmax'."
        )
    q, k = lift(terms)
    return SlidingOperator(q, k, terms.scale, window, is_causal, dropout)


def _blocks(x: Tensor, window: int) -> Tensor:
    """Return tokens ``[B, H, N, C]`` in blocks ``[B H, G, window, C]``, with zeros at the end."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % window)).flatten(0, 1).unflatten(1, (-1, window))


def _with_neighbors(blocks: Tensor, is_causal: bool) -> Tensor:
    """Return each block after the block before it, and without causality before the block after it."""
    parts = [F.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :-1], blocks]
    if not is_causal:
        parts.append(F.pad(blocks, (0, 0, 0, 0, 0, 1))[:, 1:])
    return torch.cat(parts, dim=2)


def _visible(keys: int, window: int, is_causal: bool, device: torch.device) -> Tensor:
    """Return the mask ``[G, window, 2 or 3 window]`` of the blocks. Each row has a visible token, also that of padding."""
    i = torch.arange(keys + -keys % window, device=device).unflatten(0, (-1, window))
    j = torch.cat([i - window, i] if is_causal else [i - window, i, i + window], dim=1)[:, None]
    i = i[:, :, None]
    near = (j >= 0) & ((i - j).abs() < window)
    return near & (j <= i if is_causal else j < keys)


torch.fx.wrap("_sliding")
