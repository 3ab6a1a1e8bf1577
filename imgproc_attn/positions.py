"""Positions inside a filter: how close two tokens are, whatever they hold.

A module of this kind maps a `Geometry` to `Terms`; a layer takes any number of them and multiplies the kernels. Prefix tokens
have no place: their log-weight is 0 with every token, in both directions. Absolute positions, which are added to the tokens
before the first layer, are not a filter's business; the model does that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bandwidths import Bandwidth, at_least_float32
from .geometry import Geometry
from .lifting import split_scale
from .terms import Terms

_FLOAT16_SHIFT = 16.0  # norms are stored divided by it in float16, and multiplied back by the patch flag


def log_spaced(first: float, last: float, count: int) -> list[float]:
    """``count`` values from ``first`` to ``last`` with a constant ratio; ``[first]`` for one."""
    if count == 1:
        return [first]
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


class SpatialGaussian(nn.Module):
    """Spatial kernel of the bilateral filter, ``exp(-|p_i - p_j|^2 / h^2)``, p in patches and h the spatial bandwidth.

    Args:
        num_heads: Number of heads.
        grid_size: (height, width) of the grid in patches, for the default.
        spatial_bandwidth: Starting h in patches, a number or one a head. Default: log-spaced over the heads from 1.5 to
            twice the longer side of the grid, so that some heads look near and some everywhere.
        per_axis: Two bandwidths a head, vertical and horizontal, both started at the same values.
        learned: Whether h is a parameter.
        floor: h stays above this, in patches.
    """

    def __init__(
        self,
        num_heads: int,
        grid_size: tuple[int, int],
        spatial_bandwidth: float | Sequence[float] | None = None,
        per_axis: bool = False,
        learned: bool = True,
        floor: float = 0.25,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        initial = spatial_bandwidth
        if initial is None:
            initial = log_spaced(1.5, max(2.0 * max(grid_size), 1.5), num_heads)
        self.floor = floor
        names = ["spatial_bandwidth_y", "spatial_bandwidth_x"] if per_axis else ["spatial_bandwidth"]
        self.spatial_bandwidths = nn.ModuleDict(
            {name: Bandwidth(initial, num_heads, floor, learned, name, **dd) for name in names}
        )

    def forward(self, geometry: Geometry, like: Tensor) -> Terms:
        """Terms ``[1 or B, H, N, C]`` in the type of ``like``.

        Raises:
            ValueError: float16, and the grid is so large beside the floor that a column would overflow.
        """
        bandwidths = torch.stack([bandwidth() for bandwidth in self.spatial_bandwidths.values()], dim=-1)
        return _spatial_terms(geometry, bandwidths, self.floor, like)


def _spatial_terms(geometry: Geometry, bandwidths: Tensor, floor: float, like: Tensor) -> Terms:
    """``-|p_i - p_j|^2 / h^2 = 2 p_i.p_j / h^2 - |p_i|^2 / h^2 - |p_j|^2 / h^2``, 0 where i or j is a prefix token.

    The norms carry the patch flag of the other token, and a prefix token's coordinates are 0: no other case is needed. The
    scale stands on the side whose values have more bits; the other side is exact in every type.

    Without prefix tokens the flags are all 1, and what the leading part leaves of the key norm can join the key bias, which
    saves columns.
    """
    dtype = like.dtype
    if dtype == torch.float16 and not torch.jit.is_scripting():
        _check_float16(geometry.grid_size, floor)
    shift = 16.0 if dtype == torch.float16 else 1.0  # _FLOAT16_SHIFT, which TorchScript cannot read
    p = geometry.coordinates[:, None].to(bandwidths.dtype)  # [1 or B, 1, N, 2]
    scale = bandwidths.pow(-2)[:, None]  # [H, 1, 1 or 2]
    square = p * p
    if scale.shape[-1] == 1:
        square = square.sum(dim=-1, keepdim=True)
    flag = geometry.is_patch[None, None, :, None].to(bandwidths.dtype) * shift
    flag = flag.to(dtype).expand(p.shape[0], scale.shape[0], -1, square.shape[-1])
    exact = torch.cat([p.to(dtype).expand(-1, scale.shape[0], -1, -1), flag], dim=-1)
    scales = torch.cat([scale.expand(-1, -1, 2), scale], dim=-1)
    q: list[Tensor] = []
    k: list[Tensor] = []
    key_bias: Tensor | None = None
    for part in split_scale(scales, torch.cat([2 * p, -square / shift], dim=-1), dtype):
        norm = part[..., 2:]
        q.append(part)  # a whole part at a time: its sum is exact before the next begins
        k.append(exact)
        if len(q) == 1 or geometry.num_prefix_tokens > 0:
            q.append(flag)
            k.append(norm)
        else:
            rest = at_least_float32(norm).sum(dim=-1, keepdim=True) * shift
            key_bias = rest if key_bias is None else key_bias + rest
    return Terms([torch.cat(q, dim=-1)], [torch.cat(k, dim=-1)], None, key_bias)


def _check_float16(grid_size: tuple[int, int], floor: float) -> None:
    limit = 65504.0
    norm = ((grid_size[0] - 1) ** 2 + (grid_size[1] - 1) ** 2) / 4 / _FLOAT16_SHIFT
    largest = max(norm, float(max(grid_size) - 1)) / floor**2
    if largest > limit:
        raise ValueError(
            f"spatial_bandwidth: a grid of {grid_size[0]} x {grid_size[1]} patches with floor {floor} needs columns up to "
            f"{largest:.3g}, beyond float16's {limit:.3g}; use bfloat16 or float32, or a floor= of at least "
            f"{floor * (largest / limit) ** 0.5:.3g}."
        )


class UntiedPositions(nn.Module):
    """Position-to-position log-weights ``<W_q p_i, W_k p_j> / sqrt(d)`` of learned position vectors, without cross terms.

    The positions are not added to the tokens but carried beside them (`Geometry.stream`) and projected in each layer, so
    that a score is content similarity plus position similarity: the product of two kernels of the bilateral filter, with
    dot products for distances. One reading of arXiv 2506.10371 ("BSA-dot" in its terms, whose exact text is not public),
    close to the untied positions of TUPE and DeBERTa; named by its formula, not as that paper's method.

    Doubles the columns of the filter, so its cost is that of a head twice as wide.

    Args:
        embed_dim: Width of the position vectors.
        num_heads: Number of heads.
        head_dim: Width d of a head.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        # no bias: the zero vector of a prefix token has log-weight 0 with every token
        self.qk = nn.Linear(embed_dim, 2 * num_heads * head_dim, bias=False, device=device, dtype=dtype)

    def forward(self, geometry: Geometry, like: Tensor) -> Terms:
        stream = _stream(geometry)
        batch, length, _ = stream.shape
        qk = self.qk(stream).reshape(batch, length, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = qk.unbind(0)
        return Terms([q.to(like.dtype)], [k.to(like.dtype)], scale=self.head_dim**-0.5)


def _stream(geometry: Geometry) -> Tensor:
    stream = geometry.stream
    if stream is None:
        raise ValueError("Untied positions need Geometry.stream, which is None; build the model with positions='untied'.")
    return stream


torch.fx.wrap("_spatial_terms")
torch.fx.wrap("_stream")
