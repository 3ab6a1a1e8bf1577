"""Kernels on features: how alike two tokens are, whatever their places.

A kernel maps queries and keys ``[B, H, N, d]`` to `Terms`. It knows no positions.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .bandwidths import Bandwidth
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
        return Terms([], [], Distance(q, k, self.range_bandwidth().pow(-2)[:, None, None], is_causal))
