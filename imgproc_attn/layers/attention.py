"""The one attention layer: a projection, a kernel, positions, a filter and a residual, composed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..filters import SoftmaxFilter
from ..geometry import Geometry
from ..residuals import Residual
from ..terms import Terms, product


class FilterAttention(nn.Module):
    """Attention as an image filter, ``x -> proj(u)`` with ``u = residual(A, v)`` and ``A = filter(positions * kernel(q, k))``.

    The parts are ready modules. Names of parameters follow timm's ``Attention`` (``qkv``, ``q_norm``, ``k_norm``, ``norm``,
    ``proj``), so its checkpoints fit.

    Args:
        qkv: Projection, tokens ``[B, N, C]`` to q, k, v ``[B, H, N, d]``.
        kernel: Kernel on features, ``(q, k, is_causal) -> Terms``.
        positions: Kernels on positions, each ``(geometry, like) -> Terms``; multiplied with the first.
        filter: What makes a linear operator of the terms.
        residual: Boosting rule.
        proj: Output projection.
        q_norm: Applied to the queries of each head; default none.
        k_norm: Applied to the keys of each head; default none.
        norm: Applied to the merged heads before the output projection; default none.
        proj_drop: Dropout after the output projection.
    """

    def __init__(
        self,
        qkv: nn.Module,
        kernel: nn.Module,
        positions: Sequence[nn.Module],
        filter: SoftmaxFilter,
        residual: Residual,
        proj: nn.Module,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.kernel = kernel
        self.positions = nn.ModuleList(positions)
        self.filter = filter
        self.residual = residual
        self.norm = norm or nn.Identity()
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, geometry: Geometry, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Filter the tokens.

        Args:
            x: Tokens ``[B, N, C]``.
            geometry: Their positions.
            attn_mask: Boolean (True: may be seen) or additive, broadcastable to ``[B, H, N, N]``.
            is_causal: Token i sees tokens 0 to i only.
        """
        q, k, v = self.qkv(x)
        operator = self.filter(self.terms(q, k, v, geometry, is_causal), attn_mask, is_causal)
        u = self.filter.smooth(operator, v)
        for _ in range(self.residual.steps):
            u = self.residual.update(u, self.filter.smooth(operator, self.residual.operand(u, v)))
        u = u.transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(u)))

    def terms(self, q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, is_causal: bool) -> Terms:
        """Log-weights of all kernels of the layer, in the type of ``v``."""
        terms = self.kernel(_as(self.q_norm(q), v), _as(self.k_norm(k), v), is_causal)
        for positions in self.positions:
            terms = product(positions(geometry, v), terms)
        return terms

    @torch.jit.ignore
    def weights(self, x: Tensor, geometry: Geometry, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The dense filter A ``[B, H, N, N]`` of tokens ``x``, before boosting; whatever ``fused`` is."""
        q, k, v = self.qkv(x)
        return self.filter.weights(self.terms(q, k, v, geometry, is_causal), attn_mask, is_causal)


def _as(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the type of ``like``: norms return float32 under autocast."""
    return x.to(like.dtype)


torch.fx.wrap("_as")
torch.fx.wrap("product")
