"""The attention layer: a projection, a kernel, positions, a filter and a residual rule, composed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..utils.named_tuples import changed
from .filters import Operator
from .geometry import Geometry
from .layer_cache import LayerCache
from .layer_state import LayerState, next_state
from .residuals import Residual
from .terms import Terms, product

__all__ = ["FilterAttention"]


class FilterAttention(nn.Module):
    """Attention as an image filter, ``x -> proj(u)`` with ``u = residual(A, v)`` and ``A = filter(positions * kernel(q, k))``.

    You build the parts and pass them in. Parameter names follow timm's ``Attention`` (``qkv``, ``q_norm``, ``k_norm``,
    ``norm``, ``proj``), so timm's checkpoints load.

    Args:
        qkv: Projection of tokens ``[B, N, C]`` to q, k, v ``[B, H, N, d]``.
        kernel: Kernel on features, ``(q, k, is_causal) -> Terms`` (see `imgproc_attn.core.kernels`).
        positions: Kernels on positions, ``(query, key, like) -> Terms``, which are multiplied with ``kernel``; or rotations of
            queries and keys, ``rotate(q, k, query, key)`` (see `imgproc_attn.core.positions`).
        filter: Module that builds the linear operator, ``(terms, mask, is_causal) -> Operator`` (see
            `imgproc_attn.core.filters`).
        residual: Boosting rule (see `imgproc_attn.core.residuals`).
        proj: Output projection.
        q_norm: Norm of the queries of each head. Default: none.
        k_norm: Norm of the keys of each head. Default: none.
        norm: Norm of the merged heads before the output projection. Default: none.
        proj_drop: Dropout probability after the output projection.

    Raises:
        ValueError: ``residual`` is a rule for blocks only.

    Attributes:
        needs_state: Whether the layer needs the `LayerState` of earlier layers.

    Example:
        >>> from imgproc_attn.core import GaussianRange, QueryKeyValue, SoftmaxFilter, Twicing, grid_geometry
        >>> parts = QueryKeyValue(64, num_heads=4), GaussianRange(4, head_dim=16), [], SoftmaxFilter(), Twicing(4)
        >>> attn = FilterAttention(*parts, proj=nn.Linear(64, 64))
        >>> tokens = torch.rand(2, 49, 64)
        >>> attn(tokens, grid_geometry(7, 7, 0, like=tokens))[0].shape
        torch.Size([2, 49, 64])
    """

    def __init__(
        self,
        qkv: nn.Module,
        kernel: nn.Module,
        positions: Sequence[nn.Module],
        filter: nn.Module,
        residual: Residual,
        proj: nn.Module,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if type(residual).entry is not Residual.entry:
            name = type(residual).__name__
            raise ValueError(f"residual must be a rule for filters, got {name}, a rule for blocks. Give block_residual=.")
        self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.kernel = kernel
        self.kernel_needs_state = bool(getattr(kernel, "needs_state", False))
        self.sees_all = bool(getattr(kernel, "sees_all", False))
        self.rotations = nn.ModuleList(p for p in positions if hasattr(p, "rotate"))
        self.positions = nn.ModuleList(p for p in positions if not hasattr(p, "rotate"))
        self.needs_state = self.kernel_needs_state or residual.needs_state
        self.filter = filter
        self.filter_needs_geometry = bool(getattr(filter, "needs_geometry", False))
        self.residual = residual
        self.norm = norm or nn.Identity()
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        state: LayerState | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerState | None]:
        """Filter the tokens.

        Args:
            x: Tokens ``[B, N, C]``.
            geometry: Positions of the tokens.
            attn_mask: Boolean mask (True: visible) or additive log-weights, broadcastable to ``[B, H, N, N]``.
            is_causal: Token i sees tokens 0 to i only.
            state: State that the previous layer returned. Pass `LayerState()` to the first layer, or None if no layer of the
                model needs a state.
            cache: Keys and values of the tokens before x, with ``is_causal=True``. Default: there are none.

        Returns:
            The filtered tokens ``[B, N, C]``, and the state for the next layer (None if ``state`` is None).

        Raises:
            ValueError: A part needs a state and got None, or cannot use a mask and got one.
        """
        q, k, v = self.qkv(x)
        operator = self._operator(q, k, v, geometry, attn_mask, is_causal, state, cache)
        smooth = operator.apply if cache is None else _continued(operator, cache)
        u = self.residual(smooth, v, state).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(u))), next_state(state, v)

    def operator(
        self,
        x: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        state: LayerState | None = None,
    ) -> Operator:
        """Return the filter of tokens ``x`` before boosting. Its ``dense()`` is A ``[B, H, N, N]``."""
        q, k, v = self.qkv(x)
        return self._operator(q, k, v, geometry, attn_mask, is_causal, state)

    def _operator(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None,
        is_causal: bool,
        state: LayerState | None,
        cache: LayerCache | None = None,
    ) -> Operator:
        """Return the filter of the product of all kernels of the layer."""
        q, k = _as(self.q_norm(q), v), _as(self.k_norm(k), v)
        for rotation in self.rotations:
            q, k = rotation.rotate(q, k, geometry, geometry)  # type: ignore[operator]
        keys = geometry
        if cache is not None:
            k, keys = cache.append_keys(k)
        if self.sees_all:
            _refuse_mask(attn_mask)
        if self.kernel_needs_state:
            terms = self.kernel(q, k, is_causal, v, state)
        else:
            terms = self.kernel(q, k, is_causal)
        for positions in self.positions:
            terms = product(_position_terms(positions, geometry, keys, v, cache), terms)
        if self.filter_needs_geometry:
            operator: Operator = self.filter(terms, attn_mask, is_causal, geometry)
        else:
            operator = self.filter(terms, attn_mask, is_causal)
        return operator


def _continued(operator: Operator, cache: LayerCache) -> Callable[[Tensor], Tensor]:
    """Return the filter as a function of the values of new tokens. The cache adds those of earlier tokens."""
    return lambda v: operator.apply(cache.append_values(v))


def _position_terms(positions: nn.Module, query: Geometry, key: Geometry, like: Tensor, cache: LayerCache | None) -> Terms:
    """Return the log-weights of a kernel on positions. Where it can, it computes key columns of new tokens only."""
    if cache is None or not getattr(positions, "keys_are_separate", False):
        terms: Terms = positions(query, key, like)
        return terms
    terms = positions(query, query, like)
    return changed(terms, k=cache.append_columns(positions, terms.k))


def _as(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the dtype of ``like``. Norms return float32 under autocast."""
    return x.to(like.dtype)


def _refuse_mask(attn_mask: Tensor | None) -> None:
    """Fail if there is a mask: it could not hide tokens from the metric of the kernel."""
    if attn_mask is not None:
        raise ValueError(
            "attn_mask must be None for this kernel, whose metric is computed from all tokens, got a mask. Drop the tokens "
            "(patch_drop_rate=), or use is_causal=, which the metric respects."
        )


torch.fx.wrap("_as")
torch.fx.wrap("_refuse_mask")
torch.fx.wrap("product")
