"""Filters through a few landmarks, whose time and memory grow with the number of tokens: Nystroem and Linformer.

Both see all tokens at once, so neither is causal. Masks may hide tokens from all others.
"""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from ..utils.named_tuples import changed
from .bandwidths import at_least_float32
from .filters import check_key_mask, first_keys, key_log_weights, log_weights, with_key_bias
from .geometry import Geometry
from .linear_filters import check_all_patches, refuse_causality
from .terms import Terms

__all__ = ["Linformer", "Nystroem"]

OnTokens = Callable[[Tensor], Tensor]  # of ``[..., tokens, columns]``


class Nystroem(nn.Module):
    """Filter of Nystromformer (arXiv 2102.03902), ``softmax(K(q, k~)) pinv(softmax(K(q~, k~))) softmax(K(q~, k))``.

    The landmarks q~ and k~ are means over segments of consecutive tokens. Their features and their positions are averaged
    before the kernel is applied, so it may be any kernel without dense biases. With one token per segment, this is the softmax
    filter. The paper's convolution of the values is left out.

    Rows of A do not sum to 1 exactly, and weights may be negative.

    Args:
        num_landmarks: Number of segments. Shorter inputs have one token per segment.
        num_iterations: Number of steps of `pseudo_inverse`.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: An argument is less than 1.

    Example:
        >>> from imgproc_attn.core import GaussianRange
        >>> x = torch.rand(1, 2, 100, 16)
        >>> operator = Nystroem(num_landmarks=10)(GaussianRange(num_heads=2, head_dim=16)(x, x))
        >>> operator.apply(x).shape, operator.inverse.shape
        (torch.Size([1, 2, 100, 16]), torch.Size([1, 2, 10, 10]))
    """

    rows_sum_to_one: ClassVar[bool] = False
    can_be_causal: ClassVar[bool] = False

    def __init__(self, num_landmarks: int = 64, num_iterations: int = 6) -> None:
        super().__init__()
        self.num_landmarks = _check_positive("filter='nystroem': num_landmarks", num_landmarks)
        self.num_iterations = _check_positive("filter='nystroem': num_iterations", num_iterations)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> "NystroemOperator":
        """Return the operator of ``terms``.

        Args:
            terms: Factored log-weights without dense biases.
            mask: Boolean mask of the tokens (True: visible), ``[1 or B, 1, 1, N]``. Segments have visible tokens only, so the
                result is that of a sequence without the others. Default: all are visible.
            is_causal: Must be False.

        Raises:
            TypeError: ``mask`` is not boolean.
            ValueError: ``terms`` hold dense biases, causality is given, or the mask has another shape or meets a spatial kernel
                with prefix tokens.
        """
        return _nystroem(terms, mask, is_causal, self.num_landmarks, self.num_iterations)

    def extra_repr(self) -> str:
        return f"num_landmarks={self.num_landmarks}, num_iterations={self.num_iterations}"


class NystroemOperator(NamedTuple):
    """Operator of three small factors.

    Attributes:
        from_landmarks: ``softmax(K(q, k~))``, ``[B, H, N, m]``.
        inverse: Pseudo-inverse of ``softmax(K(q~, k~))``, ``[B, H, m, m]``.
        to_landmarks: ``softmax(K(q~, k))``, ``[B, H, m, M]``.
    """

    from_landmarks: Tensor
    inverse: Tensor
    to_landmarks: Tensor

    def apply(self, v: Tensor) -> Tensor:
        left, inverse, right = (factor.to(v.dtype) for factor in self)
        return left @ (inverse @ (right @ v))

    def dense(self) -> Tensor:
        return self.from_landmarks @ self.inverse @ self.to_landmarks


class Linformer(nn.Module):
    """Filter of Linformer (arXiv 2006.04768), ``softmax(K(q, E k)) F``: each query sees a few learned sums of the tokens.

    E and F are learned maps over a grid or line of fixed size, shared by the heads. On another grid they are resized. Prefix
    tokens, such as the class token, are not summed: each stays a key. A Gaussian kernel compares a query with the sum ``E k``.

    Rows of A do not sum to 1, because those of F do not.

    Args:
        grid_size: (height, width) of the grid, or (1, length) of the line, in tokens.
        num_landmarks: Number of sums.

    Raises:
        TypeError: ``num_landmarks`` is not a whole number.
        ValueError: ``num_landmarks`` is less than 1.

    Example:
        >>> from imgproc_attn.core import DotProduct, grid_geometry
        >>> x, geometry = torch.rand(1, 2, 101, 16), grid_geometry(10, 10, num_prefix_tokens=1, like=torch.empty(0))
        >>> operator = Linformer(grid_size=(10, 10), num_landmarks=8)(DotProduct(head_dim=16)(x, x), geometry=geometry)
        >>> operator.apply(x).shape, operator.weights.shape
        (torch.Size([1, 2, 101, 16]), torch.Size([1, 2, 101, 9]))
    """

    rows_sum_to_one: ClassVar[bool] = False
    can_be_causal: ClassVar[bool] = False
    needs_geometry: ClassVar[bool] = True

    def __init__(self, grid_size: tuple[int, int], num_landmarks: int = 64, device=None, dtype=None) -> None:
        super().__init__()
        shape = (_check_positive("filter='linformer': num_landmarks", num_landmarks), *grid_size)
        self.key_maps = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.value_maps = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the maps as the authors do: Xavier's uniform distribution with gain ``1 / sqrt(2)``."""
        for maps in (self.key_maps, self.value_maps):
            bound = math.sqrt(3 / (maps.shape[0] + maps[0].numel()))
            nn.init.uniform_(maps, -bound, bound)

    def forward(
        self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False, geometry: Geometry | None = None
    ) -> "LinformerOperator":
        """Return the operator of ``terms``.

        Args:
            terms: Kernels on features.
            mask: Boolean mask of the tokens (True: visible), ``[1 or B, 1, 1, N]``. Hidden tokens are left out of the sums.
                Default: all are visible.
            is_causal: Must be False.
            geometry: Positions of the tokens: prefix tokens, then all tokens of a grid, or the first tokens of a line. It is
                required.

        Raises:
            TypeError: ``mask`` is not boolean.
            ValueError: ``terms`` hold positions, causality is given, the mask has another shape or meets prefix tokens, or
                the tokens are not the prefix and all tokens of the grid.
        """
        return _linformer(terms, mask, is_causal, geometry, self.key_maps, self.value_maps)

    def extra_repr(self) -> str:
        return f"num_landmarks={self.key_maps.shape[0]}, grid_size={tuple(self.key_maps.shape[1:])}"


class LinformerOperator(NamedTuple):
    """Operator ``softmax(K(q, E k)) F``.

    Attributes:
        weights: ``softmax(K(q, E k))``, ``[B, H, N, m]``. Its rows sum to 1.
        value_sums: F, ``[m, M]``, or ``[B, 1, m, M]`` with a mask.
    """

    weights: Tensor
    value_sums: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return self.weights.to(v.dtype) @ (self.value_sums.to(v.dtype) @ v)

    def dense(self) -> Tensor:
        return self.weights @ self.value_sums


def _check_positive(name: str, value: int) -> int:
    if check_whole(name, value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}. Give a whole number such as 64.")
    return int(value)


def _visible(name: str, mask: Tensor | None) -> Tensor | None:
    """Return a boolean mask of tokens ``[1 or B, 1, 1, N]``, or None."""
    if mask is None:
        return None
    check_key_mask(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"filter={name!r}: mask must be bool (True: visible), got {mask.dtype}. Give mask == 0.")
    return mask


def _nystroem(terms: Terms, mask: Tensor | None, is_causal: bool, num_landmarks: int, num_iterations: int) -> NystroemOperator:
    refuse_causality("nystroem", is_causal)
    visible = _visible("nystroem", mask)
    if len(terms.biases) > 0:
        raise ValueError(
            f"filter='nystroem': kernels must not be dense biases, which have no means, got {len(terms.biases)}. Use "
            "positions='spatial_gaussian', 'absolute', 'sincos' or 'rotary', or filter='softmax'."
        )

    def means(x: Tensor) -> Tensor:
        return _sums_of_tokens(_segments(x.shape[-2], num_landmarks, x, visible), x)

    def weights(on_q: OnTokens, on_k: OnTokens, there: Tensor | None) -> Tensor:
        return log_weights(with_key_bias(_on_tokens(terms, on_q, on_k), key_log_weights("nystroem", there))).softmax(dim=-1)

    if visible is None:
        left, middle, right = weights(_same, means, None), weights(means, means, None), weights(means, _same, None)
    else:
        _refuse_prefix("nystroem", any(d.k_has_position is not None for d in terms.position_distances))
        count = min(num_landmarks, visible.shape[-1])
        filled = torch.arange(count, device=visible.device) < visible.sum(dim=-1, keepdim=True)
        left, middle, right = weights(_same, means, filled), weights(means, means, filled), weights(means, _same, visible)
        # A landmark without tokens is its own inverse, so it changes nothing.
        middle = torch.where(filled.mT, middle, torch.eye(count, device=middle.device, dtype=middle.dtype))
    return NystroemOperator(left, pseudo_inverse(middle, num_iterations), right)


def _refuse_prefix(name: str, has_prefix: bool) -> None:
    if has_prefix:
        raise ValueError(f"filter={name!r}: mask must be None beside prefix tokens, got a mask. Use filter='softmax'.")


def _same(x: Tensor) -> Tensor:
    return x


def _segments(length: int, count: int, like: Tensor, visible: Tensor | None) -> Tensor:
    """Return the weights of means over segments of visible tokens, ``[m, N]``, or ``[B, 1, m, N]`` with a mask.

    m is ``count``, at most N. Sizes of segments differ by at most 1. With fewer than m visible tokens, the last segments are
    empty.
    """
    count = min(count, length)
    landmark = torch.arange(count, device=like.device)[:, None]
    if visible is None:
        member = torch.arange(length, device=like.device) * count // length == landmark
    else:
        total, rank = visible.sum(dim=-1, keepdim=True), visible.cumsum(dim=-1) - 1
        member = visible & (rank * total.clamp(max=count) // total.clamp(min=1) == landmark)
    weights = member.to(torch.promote_types(like.dtype, torch.float32))
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)


def pseudo_inverse(a: Tensor, num_iterations: int) -> Tensor:
    """Return an estimate of the pseudo-inverse of matrices without negative entries (Nystromformer, equation 14).

    Each step multiplies the part of a small singular value by 3.25, so the result is also a regularized inverse.

    Args:
        a: Matrices ``[..., m, m]``.
        num_iterations: Number of steps.
    """
    one = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    z = a.mT / (a.sum(dim=-1).amax(dim=-1) * a.sum(dim=-2).amax(dim=-1))[..., None, None]
    for _ in range(num_iterations):
        az = a @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z


def _linformer(
    terms: Terms,
    mask: Tensor | None,
    is_causal: bool,
    geometry: Geometry | None,
    key_maps: Tensor,
    value_maps: Tensor,
) -> LinformerOperator:
    refuse_causality("linformer", is_causal)
    visible = _visible("linformer", mask)
    if len(terms.position_distances) > 0 or len(terms.biases) > 0 or terms.key_bias is not None:
        raise ValueError(
            "filter='linformer': the layer must have kernels on features only, not distances of positions or dense biases, "
            f"got {len(terms.position_distances)} and {len(terms.biases)}, because sums of tokens have no position. Use "
            "positions='absolute', 'sincos' or 'rotary', or filter='softmax'."
        )
    tokens = first_keys(terms).shape[2]
    geometry = _grid_of("linformer", geometry, tokens)
    key_sums, value_sums = (_with_prefix(maps, geometry)[:, :tokens] for maps in (key_maps, value_maps))
    if visible is not None:
        _refuse_prefix("linformer", geometry.num_prefix_tokens > 0)
        key_sums, value_sums = key_sums * visible, value_sums * visible
    few = _on_tokens(terms, _same, lambda k: _sums_of_tokens(key_sums, k))
    return LinformerOperator(log_weights(few).softmax(dim=-1), value_sums)


def _grid_of(name: str, geometry: Geometry | None, tokens: int) -> Geometry:
    """Return the geometry of the tokens if they are the first of a line, or the prefix tokens and all tokens of a grid."""
    if geometry is not None and geometry.coordinates.shape[-1] == 1:
        return geometry
    return check_all_patches(name, geometry, tokens)


def _with_prefix(maps: Tensor, geometry: Geometry) -> Tensor:
    """Return maps of a grid as sums ``[prefix + m, prefix + height * width]``, in which prefix tokens stand for themselves."""
    prefix, maps = geometry.num_prefix_tokens, at_least_float32(maps)
    if maps.shape[1:] != geometry.grid_size:
        maps = F.interpolate(maps[None], geometry.grid_size, mode="bilinear", align_corners=True)[0]
    sums = F.pad(maps.flatten(1), (prefix, 0, prefix, 0))
    alone = torch.eye(*sums.shape, device=maps.device, dtype=maps.dtype)[:, :prefix]
    return torch.cat([alone, sums[:, prefix:]], dim=1)


def _on_tokens(terms: Terms, on_q: OnTokens, on_k: OnTokens) -> Terms:
    """Return terms with other queries and keys."""

    def flags(on: OnTokens, has_position: Tensor | None) -> Tensor | None:
        return None if has_position is None else on(has_position[:, None])[:, 0]

    return changed(
        terms,
        q=[on_q(q) for q in terms.q],
        k=[on_k(k) for k in terms.k],
        distances=[changed(d, q=on_q(d.q), k=on_k(d.k)) for d in terms.distances],
        position_distances=[
            changed(
                d,
                q=on_q(d.q),
                k=on_k(d.k),
                q_has_position=flags(on_q, d.q_has_position),
                k_has_position=flags(on_k, d.k_has_position),
            )
            for d in terms.position_distances
        ],
        key_bias=None if terms.key_bias is None else on_k(terms.key_bias),
    )


def _sums_of_tokens(weights: Tensor, x: Tensor) -> Tensor:
    """Return ``weights @ x`` in the dtype of ``x``, summed in float32 or float64."""
    wide = at_least_float32(x)
    if weights.dim() > x.dim():  # coordinates, which have no heads
        weights = weights[:, 0]
    return (weights.to(wide.dtype) @ wide).to(x.dtype)


torch.fx.wrap("_nystroem")
torch.fx.wrap("_linformer")
