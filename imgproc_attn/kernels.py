"""Kernels on features: how alike two tokens are, whatever their places.

A kernel maps queries and keys ``[B, H, N, d]`` to `Terms` in the type of the queries. It knows no positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bandwidths import Bandwidth, at_least_float32
from .terms import Terms, split_value


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
        return Terms([q * self.scale], [k], None)


class GaussianRange(nn.Module):
    """Range kernel of non-local means, ``exp(-|q - k|^2 / h^2)``, h the range bandwidth in feature units (sqrt(2) sigma).

    Args:
        num_heads: Number of heads.
        head_dim: Width d of a head.
        range_bandwidth: Starting h, a number or one a head. Default ``(4 d)^(1/4)``, where the kernel differs from softmax
            attention's only in norm factors (arXiv 2506.10371, eq. of K_SA; an identity tested to 1e-12).
        learned: Whether h is a parameter.
        floor: h stays above this. Small bandwidths saturate the weights, which masks gradients and feigns robustness.
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
        self.range_bandwidth = Bandwidth(
            initial, num_heads, floor, learned, "range_bandwidth", device=device, dtype=dtype
        )

    def forward(self, q: Tensor, k: Tensor, is_causal: bool = False) -> Terms:
        return _gaussian_terms(q, k, self.range_bandwidth(), is_causal)


def _gaussian_terms(q: Tensor, k: Tensor, bandwidth: Tensor, is_causal: bool) -> Terms:
    """``-|q - k|^2 / h^2 = <2 (q - m) / h^2, k - m> + <1, -|k - m|^2 / h^2>``, up to a constant in each row.

    The kernel is translation invariant; subtracting a centre m of the keys keeps a common offset of q and k from
    costing precision. m is a constant to autograd, rightly so: the result does not depend on it. Causal filters take the
    first key, which every query may see, where others take the mean.
    """
    wide_q, wide_k = at_least_float32(q), at_least_float32(k)
    centre = (wide_k[:, :, :1] if is_causal else wide_k.mean(dim=2, keepdim=True)).detach()
    inverse = bandwidth.to(wide_q.dtype).pow(-2)[:, None, None]
    scaled = wide_q * (2 * inverse) - centre * (2 * inverse)
    centred = wide_k - centre
    key_bias = -(centred * centred).sum(dim=-1, keepdim=True) * inverse
    if q.dtype == torch.float16 or q.dtype == torch.bfloat16:
        return _half_terms(scaled, k, key_bias)
    return Terms([scaled, torch.ones_like(key_bias)], [centred, key_bias], None)


def _half_terms(scaled: Tensor, k: Tensor, key_bias: Tensor) -> Terms:
    """The same columns in half precision: keys uncentred, hence exact (the shift is constant in a row); bias in three.

    float16 ends at 65,504, which a bias may exceed: it is stored divided by 256 and multiplied back by the query side.
    """
    shift = 256.0 if k.dtype == torch.float16 else 1.0
    if k.dtype == torch.float16:
        scaled = scaled.clamp(-65504.0, 65504.0)
        key_bias = key_bias.clamp(min=-65504.0 * shift)
    bias = torch.cat(split_value(key_bias / shift, k.dtype), dim=-1)
    return Terms([scaled.to(k.dtype), torch.full_like(bias, shift)], [k, bias], None)


torch.fx.wrap("_gaussian_terms")
