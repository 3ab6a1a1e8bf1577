"""Kernels on features: the similarity of two tokens, independent of their positions.

Kernels that depend on places, such as one that sees only its own row of patches, are in `imgproc_attn.core.positions`.

A kernel maps queries and keys ``[B, H, N, d]`` to `Terms`. A kernel that sets ``needs_state = True`` also gets the values of
its layer and the state of earlier layers: ``(q, k, is_causal, v, state)``. A kernel that sets ``sees_all = True`` computes its
weights from all tokens, so it cannot be used with a mask.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag, check_number
from .bandwidths import Bandwidth, at_least_float32
from .layer_state import LayerState
from .terms import Distance, Terms

__all__ = ["DotProduct", "Elliptical", "GaussianRange"]


class DotProduct(nn.Module):
    """Kernel of softmax attention, ``exp(q.k / sqrt(d))``.

    It is not a function of a distance. It is the Gaussian kernel of bandwidth ``h = (4 d)^(1/4)`` times the norm factors
    ``exp(|q|^2 / h^2) exp(|k|^2 / h^2)`` (arXiv 2506.10371). The first factor is constant in a row and cancels.

    Args:
        head_dim: Width d of a head.
        scale: Factor on q.k. Default: ``1 / sqrt(d)``.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: ``scale`` is not positive and finite.

    Example:
        >>> q, k = torch.rand(1, 2, 9, 16), torch.rand(1, 2, 9, 16)
        >>> DotProduct(head_dim=16)(q, k).scale
        0.25
    """

    def __init__(self, head_dim: int, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not 0 < check_number("kernel='dot_product': scale", scale) < math.inf:
            raise ValueError(
                f"kernel='dot_product': scale must be positive and finite, got {scale}. Leave it out for 1 / sqrt(head_dim)."
            )
        self.scale = head_dim**-0.5 if scale is None else float(scale)

    def forward(self, q: Tensor, k: Tensor, is_causal: bool = False) -> Terms:
        return Terms([q], [k], scale=self.scale)


class GaussianRange(nn.Module):
    """Range kernel of non-local means, ``exp(-|q - k|^2 / h^2)``. h is the range bandwidth in feature units (sqrt(2) sigma).

    Args:
        num_heads: Number of heads.
        head_dim: Width d of a head.
        range_bandwidth: Initial h, one number or one per head. Default: ``(4 d)^(1/4)``. There the kernel differs from the
            kernel of softmax attention only in norm factors (arXiv 2506.10371, an identity tested to 1e-12).
        learned: Whether h is a parameter.
        floor: Lower limit of h. Small bandwidths saturate the weights. Saturated weights mask gradients, so a model looks
            more robust than it is.

    Raises:
        ValueError: A bandwidth is not finite or not above the floor.

    Example:
        >>> kernel = GaussianRange(num_heads=2, head_dim=4)
        >>> kernel.range_bandwidth().tolist()
        [2.0, 2.0]
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        range_bandwidth: float | Sequence[float] | None = None,
        learned: bool = True,
        floor: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        initial = (4 * head_dim) ** 0.25 if range_bandwidth is None else range_bandwidth
        self.range_bandwidth = Bandwidth(initial, num_heads, floor, learned, "range_bandwidth", device=device, dtype=dtype)

    def forward(self, q: Tensor, k: Tensor, is_causal: bool = False) -> Terms:
        return Terms(distances=[Distance(q, k, self.range_bandwidth().pow(-2)[:, None, None], is_causal)])


class Elliptical(nn.Module):
    """Kernel of elliptical attention, ``exp(q M k / sqrt(d))`` with a diagonal metric M (arXiv 2406.13770).

    M weights each coordinate c by the change of the values since the previous layer,
    ``m_c = mean over tokens of |v_c - previous v_c|``. There is one M per sample and head, scaled to a largest entry of 1, or
    to a mean of 1. If nothing changed, M is the identity. Under causality, the metric of a query is the mean over the tokens
    up to its own.

    The gradient flows through M, unlike in the published code. A stopped gradient would hide M from gradient attacks, so
    the model would look more robust than it is. In half precision, the scaled queries are rounded one more time. This costs
    precision if they have a large common offset.

    Args:
        head_dim: Width d of a head.
        mean_scale: Scale M to mean 1 ("meanscale") instead of largest entry 1 ("maxscale").
        detach: Stop the gradient at M in training mode, as the published training does. Evaluation mode never stops it.

    Example:
        >>> from imgproc_attn.core import LayerState
        >>> x, state = torch.rand(1, 2, 9, 16), LayerState(previous=torch.rand(1, 2, 9, 16))
        >>> Elliptical(head_dim=16)(x, x, False, v=x, state=state).q[0].shape
        torch.Size([1, 2, 9, 16])
    """

    needs_state: ClassVar[bool] = True
    sees_all: ClassVar[bool] = True

    def __init__(self, head_dim: int, mean_scale: bool = False, detach: bool = False) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.mean_scale = check_flag("elliptical: mean_scale", mean_scale)
        self.detach = check_flag("elliptical: detach", detach)

    def forward(self, q: Tensor, k: Tensor, is_causal: bool, v: Tensor, state: LayerState | None) -> Terms:
        """Return the terms of queries, keys and values ``[B, H, N, d]``.

        Raises:
            ValueError: ``state`` does not hold the values of a previous layer.
        """
        m = _metric(v, state, is_causal, self.mean_scale, q.shape[2])
        if self.detach and self.training:
            m = m.detach()
        return Terms([q * m.to(q.dtype)], [k], scale=self.scale)

    def extra_repr(self) -> str:
        return f"{'mean' if self.mean_scale else 'max'} scale{', detached in training' if self.detach else ''}"


def _metric(v: Tensor, state: LayerState | None, is_causal: bool, mean_scale: bool, queries: int) -> Tensor:
    """Return the diagonal of M, ``[B, H, 1, d]``. Under causality there is one per query, ``[B, H, N, d]``."""
    previous = None if state is None else state.previous
    if previous is None:
        raise ValueError(
            "state of Elliptical must hold the values of the previous layer, got none. In the first layer use another kernel. "
            "Outside a model, pass LayerState() to the first layer and each returned state= to the next."
        )
    change = (at_least_float32(v) - at_least_float32(previous)).abs()
    if is_causal:
        count = torch.arange(1, v.shape[2] + 1, device=v.device, dtype=change.dtype)
        raw = (change.cumsum(dim=2) / count[:, None])[:, :, v.shape[2] - queries :]
    else:
        raw = change.mean(dim=2, keepdim=True)
    largest = raw.mean(dim=-1, keepdim=True) if mean_scale else raw.amax(dim=-1, keepdim=True)
    nothing = 1e-12
    return (raw + nothing) / (largest + nothing)


torch.fx.wrap("_metric")
