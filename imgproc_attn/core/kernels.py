"""Kernels on features: how alike two tokens are, whatever their places.

A kernel maps queries and keys ``[B, H, N, d]`` to `Terms`. It knows no positions. One that sets ``needs_state = True`` is also
given the values of its layer and what earlier layers hand on, ``(q, k, is_causal, v, state)``.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag
from .bandwidths import Bandwidth, at_least_float32
from .layer_state import LayerState
from .terms import Distance, Terms


class DotProduct(nn.Module):
    """Softmax attention's kernel, ``exp(q.k / sqrt(d))``.

    Not a function of a distance: it is the Gaussian kernel of bandwidth ``(4 d)^(1/4)`` times the norm factors
    ``exp(|q|^2 / h^2) exp(|k|^2 / h^2)`` (arXiv 2506.10371; the first is constant in a row and cancels).

    Args:
        head_dim: Width d of a head.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = head_dim**-0.5

    def forward(self, q: Tensor, k: Tensor, is_causal: bool = False) -> Terms:
        return Terms([q], [k], scale=self.scale)


class GaussianRange(nn.Module):
    """Range kernel of non-local means, ``exp(-|q - k|^2 / h^2)``, h the range bandwidth in feature units (sqrt(2) sigma).

    Args:
        num_heads: Number of heads.
        head_dim: Width d of a head.
        range_bandwidth: Starting h, a number or one a head. Default ``(4 d)^(1/4)``, where the kernel differs from softmax
            attention's only in norm factors (arXiv 2506.10371; an identity, tested to 1e-12).
        learned: Whether h is a parameter.
        floor: h stays above this. Small bandwidths saturate the weights, which masks gradients and feigns robustness.

    Raises:
        ValueError: A bandwidth that is not finite or not above the floor.
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
    """Elliptical attention's kernel, ``exp(q M k / sqrt(d))`` with a diagonal metric M (arXiv 2406.13770).

    M weighs each coordinate by how much the values changed along it since the layer before,
    ``m_c = mean over tokens of |v_c - previous v_c|``, one a sample and head, scaled so that the largest is 1, or the mean is.
    Where nothing changed M is the identity. Under causality a query's metric is the mean over the tokens up to its own.

    The gradient flows through M, unlike in the published code: at attack time a stop-gradient would hide from an attack what
    the model does, and feign robustness. In half precision the scaled queries are rounded once more, which costs precision
    where they have a large common offset.

    Args:
        head_dim: Width d of a head.
        mean_scale: Scale M to mean 1 ("meanscale") in place of largest 1 ("maxscale").
        detach: Stop the gradient at M in training mode, as the published training does; never in evaluation mode.
    """

    needs_state: ClassVar[bool] = True
    sees_all: ClassVar[bool] = True

    def __init__(self, head_dim: int, mean_scale: bool = False, detach: bool = False) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.mean_scale = check_flag("elliptical: mean_scale", mean_scale)
        self.detach = check_flag("elliptical: detach", detach)

    def forward(self, q: Tensor, k: Tensor, is_causal: bool, v: Tensor, state: LayerState | None) -> Terms:
        """Terms of queries, keys and values ``[B, H, N, d]``.

        Raises:
            ValueError: No layer in front has handed on its values.
        """
        m = _metric(v, state, is_causal, self.mean_scale, q.shape[2])
        if self.detach and self.training:
            m = m.detach()
        return Terms([q * m.to(q.dtype)], [k], scale=self.scale)

    def extra_repr(self) -> str:
        return f"{'mean' if self.mean_scale else 'max'} scale{', detached in training' if self.detach else ''}"


def _metric(v: Tensor, state: LayerState | None, is_causal: bool, mean_scale: bool, queries: int) -> Tensor:
    """Return the diagonal of M, ``[B, H, 1, d]``; under causality one per query, ``[B, H, N, d]``, of the last tokens."""
    previous = None if state is None else state.previous
    if previous is None:
        raise ValueError(
            "Elliptical needs the values of the layer before, and there are none: in the first layer use another kernel; "
            "outside a model pass each layer's state= to the next, LayerState() to the first."
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
