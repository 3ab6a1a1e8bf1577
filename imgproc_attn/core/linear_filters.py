"""Filters whose time and memory grow with the number of tokens, not with its square: token statistics and representatives.

Both need one set of features for queries and keys, as ``projection="subspaces"`` gives. Neither takes masks. Token statistics
can be causal.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .bandwidths import at_least_float32
from .geometry import Geometry
from .terms import Terms

__all__ = ["Representatives", "TokenStatistics"]


class TokenStatistics(nn.Module):
    """Token-statistics attention, ``u_ic = -pi_i v_ic / (1 + m_c)`` (ToST, arXiv 2412.17810).

    pi is the membership of token i in head h, a softmax over the heads of the share of the token in the energy of the features,
    ``t_h sum_c w_ic^2 / sum_j w_jc^2``. m is the second moment of the features under this membership,
    ``m_c = sum_i pi_i w_ic^2 / sum_i pi_i``. No two tokens are compared, and the result has the opposite sign of the values.
    Under causality, the sums of token i run over the tokens up to its own, as in the authors' language models. Their learned
    bias per place is left out.

    Args:
        num_heads: Number of heads.

    Example:
        >>> w = torch.rand(1, 2, 9, 16)
        >>> TokenStatistics(num_heads=2)(Terms([w], [w])).apply(w).shape
        torch.Size([1, 2, 9, 16])
    """

    rows_sum_to_one: ClassVar[bool] = False
    can_be_cached: ClassVar[bool] = False  # A cache would have to keep sums, not keys.
    can_be_masked: ClassVar[bool] = False

    def __init__(self, num_heads: int, device=None, dtype=None) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.empty(num_heads, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the temperatures t to 1."""
        nn.init.ones_(self.temperature)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "StatisticsOperator":
        """Return the operator of the columns w of ``terms``.

        Raises:
            ValueError: ``terms`` are not one block of columns for queries and keys, or a mask is given.
        """
        return _statistics(terms, mask, is_causal, self.temperature)


class StatisticsOperator(NamedTuple):
    """Operator that multiplies each value by the membership of its token and by a factor of its channel.

    Attributes:
        membership: pi, ``[B, H, N, 1]``.
        channels: ``1 / (1 + m)``, ``[B, H, 1, d]``, or ``[B, H, N, d]`` under causality.
    """

    membership: Tensor
    channels: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return -(self.membership * self.channels).to(v.dtype) * v

    def dense(self) -> Tensor:
        raise ValueError(
            "filter='token_statistics' must not be asked for dense weights: each channel has its own. Read membership and "
            "channels of the operator."
        )


class Representatives(nn.Module):
    """Attention through a few representatives, contract and broadcast (CBSA, arXiv 2509.16875).

    The representatives r are averages of the features w over the cells of a coarse grid, moved towards the tokens that attend
    to them: ``r = P w``, ``A = softmax(r w^T / sqrt(d))``, ``r <- r + s_r A w``. They are filtered among themselves and sent
    back: ``u = s_x A^T softmax(r r^T / sqrt(d)) r``. Prefix tokens are not averaged, but they attend and receive.

    With the weights frozen, ``u = s_x A^T softmax(r r^T / sqrt(d)) (P + s_r A) v`` is linear in the values.

    Args:
        num_heads: Number of heads.
        cells: Number of cells along each side of the coarse grid.

    Raises:
        TypeError: ``cells`` is not a whole number.
        ValueError: ``cells`` is less than 1.

    Example:
        >>> from imgproc_attn.core import grid_geometry
        >>> w = torch.rand(1, 2, 17, 16)
        >>> geometry = grid_geometry(4, 4, num_prefix_tokens=1, like=w)
        >>> Representatives(num_heads=2, cells=2)(Terms([w], [w]), geometry=geometry).dense().shape
        torch.Size([1, 2, 17, 17])
    """

    rows_sum_to_one: ClassVar[bool] = False
    can_be_causal: ClassVar[bool] = False
    can_be_masked: ClassVar[bool] = False
    needs_geometry: ClassVar[bool] = True  # `FilterAttention` passes the geometry of the tokens.

    def __init__(self, num_heads: int, cells: int = 8, device=None, dtype=None) -> None:
        super().__init__()
        if check_whole("filter='representatives': cells", cells) < 1:
            raise ValueError(f"filter='representatives': cells must be at least 1, got {cells}. Give a whole number such as 8.")
        self.cells = cells
        self.step_x = nn.Parameter(torch.empty(num_heads, 1, 1, device=device, dtype=dtype))
        self.step_representatives = nn.Parameter(torch.empty(num_heads, 1, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the step sizes s_x and s_r from the normal distribution, as the authors do."""
        nn.init.normal_(self.step_x)
        nn.init.normal_(self.step_representatives)

    def forward(
        self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False, geometry: Geometry | None = None
    ) -> "RepresentativesOperator":
        """Return the operator of the columns w of ``terms``.

        Args:
            terms: Log-weights, one block of columns that queries and keys share.
            mask: Must be None.
            is_causal: Must be False.
            geometry: Positions of the tokens: prefix tokens, then all patches of a grid. It is required.

        Raises:
            ValueError: ``terms`` are not one block of columns for queries and keys, a mask or causality is given, or the tokens
                are not the prefix and all patches of the grid.
        """
        return _representatives(terms, mask, is_causal, geometry, self.cells, self.step_x, self.step_representatives)


class RepresentativesOperator(NamedTuple):
    """Operator ``s_x A^T B (P + s_r A)`` of M representatives.

    Attributes:
        to_representatives: A, ``[B, H, M, N]``. Its rows sum to 1.
        among: B, ``[B, H, M, M]``. Its rows sum to 1.
        pool: P, ``[M, N]``.
        step_x: s_x, ``[H, 1, 1]``.
        step_representatives: s_r, ``[H, 1, 1]``.
    """

    to_representatives: Tensor
    among: Tensor
    pool: Tensor
    step_x: Tensor
    step_representatives: Tensor

    def apply(self, v: Tensor) -> Tensor:
        a, b = self.to_representatives.to(v.dtype), self.among.to(v.dtype)
        r = self.pool.to(v.dtype) @ v + self.step_representatives.to(v.dtype) * (a @ v)
        return self.step_x.to(v.dtype) * (a.transpose(-2, -1) @ (b @ r))

    def dense(self) -> Tensor:
        inner = self.pool + self.step_representatives * self.to_representatives
        return self.step_x * (self.to_representatives.transpose(-2, -1) @ (self.among @ inner))


def refuse_mask(name: str, mask: Tensor | None) -> None:
    """Fail if the filter of this name gets a mask."""
    if mask is not None:
        raise ValueError(f"filter={name!r}: mask must be None, got a mask. Use filter='softmax' for masks.")


def refuse_causality(name: str, is_causal: bool) -> None:
    """Fail if the filter of this name must be causal."""
    if is_causal:
        raise ValueError(
            f"filter={name!r}: is_causal must be False, because tokens attend through averages of all tokens, got True. Use "
            "filter='softmax'."
        )


def check_all_patches(name: str, geometry: Geometry | None, tokens: int) -> Geometry:
    """Return the geometry of the tokens if they are the prefix tokens and all tokens of its grid or line."""
    if geometry is None:
        raise ValueError(f"filter={name!r}: geometry must be that of the tokens, got None. Pass geometry=.")
    (height, width), prefix = geometry.grid_size, geometry.num_prefix_tokens
    if tokens != prefix + height * width:
        raise ValueError(
            f"filter={name!r}: tokens must be {prefix} prefix tokens and all patches of the grid {height} x {width}, got "
            f"{tokens} tokens. Set patch_drop_rate=0, and give inputs of that length."
        )
    return geometry


def _one_block(name: str, terms: Terms, mask: Tensor | None) -> Tensor:
    """Return the columns w of ``terms``, one block that queries and keys share."""
    refuse_mask(name, mask)
    others = (terms.distances, terms.position_distances, terms.biases)
    if len(terms.q) != 1 or terms.q[0] is not terms.k[0] or any(map(len, others)) or terms.key_bias is not None:
        raise ValueError(
            f"filter={name!r}: queries and keys must be one set of features without positions in the layer, got others. Use "
            "projection='subspaces', kernel='dot_product' and positions='absolute', 'sincos' or 'none'."
        )
    return at_least_float32(terms.q[0])


def _statistics(terms: Terms, mask: Tensor | None, is_causal: bool, temperature: Tensor) -> StatisticsOperator:
    w = _one_block("token_statistics", terms, mask)
    squared, tiny = w.square(), 1e-8
    if is_causal:
        energy = (squared / squared.cumsum(dim=2).clamp(min=tiny**2)).sum(dim=-1)
    else:
        energy = F.normalize(w, dim=2).square().sum(dim=-1)
    membership = (energy * temperature.to(w.dtype)).softmax(dim=1)[..., None]
    if is_causal:
        moment = (membership * squared).cumsum(dim=2) / (membership.cumsum(dim=2) + tiny)
    else:
        moment = (membership / (membership.sum(dim=2, keepdim=True) + tiny)).mT @ squared
    return StatisticsOperator(membership, 1 / (1 + moment))


def _representatives(
    terms: Terms,
    mask: Tensor | None,
    is_causal: bool,
    geometry: Geometry | None,
    cells: int,
    step_x: Tensor,
    step_representatives: Tensor,
) -> RepresentativesOperator:
    refuse_causality("representatives", is_causal)
    w = _one_block("representatives", terms, mask)
    geometry = check_all_patches("representatives", geometry, w.shape[2])
    (height, width), prefix, scale = geometry.grid_size, geometry.num_prefix_tokens, terms.scale
    cell = torch.eye(height * width, device=w.device, dtype=w.dtype).reshape(1, height * width, height, width)
    pool = F.pad(F.adaptive_avg_pool2d(cell, cells).flatten(2)[0].t(), (prefix, 0))
    a = (pool @ w @ w.transpose(-2, -1) * scale).softmax(dim=-1)
    r = pool @ w + step_representatives.to(w.dtype) * (a @ w)
    b = (r @ r.transpose(-2, -1) * scale).softmax(dim=-1)
    return RepresentativesOperator(a, b, pool, step_x.to(w.dtype), step_representatives.to(w.dtype))


torch.fx.wrap("_statistics")
torch.fx.wrap("_representatives")
