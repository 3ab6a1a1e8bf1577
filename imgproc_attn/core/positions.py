"""Positions inside a filter: the spatial closeness of two tokens, independent of their content.

There are three kinds of modules:

- Kernels on positions map the positions of queries and of keys, each a `Geometry`, to `Terms`. A layer accepts any number of
  them and multiplies the kernels.
- Modules with a method ``rotate`` turn queries and keys instead (`Rotary`).
- Modules with a method ``embed`` act once on the tokens, before the first layer (`SinCos`).

Prefix tokens have no position. Their log-weight is 0 with every token, in both directions. They are not rotated, and nothing is
added to them. Learned absolute positions are timm's own ``pos_embed``. You can pass your own modules of the first two kinds.
Modules that add to the tokens belong to the model, not to a layer.

All members work on grids of patches and on lines of tokens, where coordinates have one axis (`line_geometry`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat, build_rotary_pos_embed, build_sincos2d_pos_embed
from torch import Tensor, nn

from ..utils.checks import check_flag
from .bandwidths import Bandwidth, at_least_float32
from .gates import Gate
from .geometry import Geometry
from .lifting import FLOAT16_SHIFT, LONGEST_LINE, exact_part, split_value
from .terms import PositionDistance, Terms

__all__ = ["Alibi", "RelativeTable", "Rotary", "SinCos", "SpatialGaussian", "UntiedPositions"]


def log_spaced(first: float, last: float, count: int) -> list[float]:
    """Return ``count`` values from ``first`` to ``last`` with a constant ratio, or ``[first]`` if ``count`` is 1."""
    if count == 1:
        return [first]
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


class SpatialGaussian(nn.Module):
    """Spatial kernel of the bilateral filter, ``exp(-|p_i - p_j|^2 / h^2)``. p and the spatial bandwidth h are in patches.

    On a line of up to 4,096 tokens, p and h are in tokens. In half precision, a layer with this kernel on a line computes its
    filter in float32.

    Args:
        num_heads: Number of heads.
        grid_size: (height, width) of the grid in patches. Only the default bandwidth uses it.
        spatial_bandwidth: Initial h in patches, one number or one per head. Default: log-spaced over the heads from 1.5 to
            twice the longer side of the grid. Some heads then see near tokens, and others see the whole image.
        per_axis: Use two bandwidths per head, vertical and horizontal. Both start at the same values.
        learned: Whether h is a parameter.
        floor: Lower limit of h, in patches.
        gate: Factor g on the log-weight. With 0, all positions count the same.
        learned_gate: Whether g is a parameter, one value per head.

    Raises:
        TypeError: A flag is not a bool, or a bandwidth is not a number.
        ValueError: A bandwidth is not finite or not above the floor, or ``gate`` is not finite.

    Example:
        >>> kernel = SpatialGaussian(num_heads=2, grid_size=(14, 14))
        >>> [round(h, 2) for h in kernel.spatial_bandwidths["spatial_bandwidth"]().tolist()]
        [1.5, 28.0]
    """

    def __init__(
        self,
        num_heads: int,
        grid_size: tuple[int, int],
        spatial_bandwidth: float | Sequence[float] | None = None,
        per_axis: bool = False,
        learned: bool = True,
        floor: float = 0.25,
        gate: float = 1.0,
        learned_gate: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.gate = Gate(num_heads, gate, learned_gate, "spatial_gaussian", **dd)
        initial = spatial_bandwidth
        if initial is None:
            initial = log_spaced(1.5, max(2.0 * max(grid_size), 1.5), num_heads)
        self.floor = floor
        check_flag("spatial_gaussian: per_axis", per_axis)
        names = ["spatial_bandwidth_y", "spatial_bandwidth_x"] if per_axis else ["spatial_bandwidth"]
        self.spatial_bandwidths = nn.ModuleDict(
            {name: Bandwidth(initial, num_heads, floor, learned, name, **dd) for name in names}
        )

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        """Return the distance of the positions, for a filter that computes in the dtype of ``like``.

        Raises:
            ValueError: In float16, a column would overflow, because the grid is too large for the floor; or a line is longer
                than 4,096 tokens, meets ``per_axis=True``, or is on a GPU that rounds float32 products to TF32.
        """
        bandwidths = torch.stack([bandwidth() for bandwidth in self.spatial_bandwidths.values()], dim=-1)
        scale = self.gate(bandwidths.pow(-2)[:, None])
        return Terms(position_distances=[_position_distance(query, key, scale, self.floor, like)])


def _position_distance(query: Geometry, key: Geometry, scale: Tensor, floor: float, like: Tensor) -> PositionDistance:
    if key.coordinates.shape[-1] == 1:
        _check_line(key.grid_size[1], scale.shape[-1], like.device.type)
    elif like.dtype == torch.float16:
        _check_float16(key.grid_size, floor)
    return PositionDistance(query.coordinates, key.coordinates, _has_position(query), _has_position(key), scale, like)


def _has_position(geometry: Geometry) -> Tensor | None:
    return geometry.is_patch if geometry.num_prefix_tokens > 0 else None


def _check_line(longest: int, axes: int, device_type: str) -> None:
    if device_type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        raise ValueError(
            "spatial_gaussian: products on a line must be those of float32, got TF32. Call "
            "torch.set_float32_matmul_precision('highest')."
        )
    if longest > LONGEST_LINE:
        raise ValueError(
            f"spatial_gaussian: a line must have at most {LONGEST_LINE} tokens, where its sums are exact, got {longest}. Use "
            "positions='alibi' or 'rotary' for longer ones."
        )
    if axes > 1:
        raise ValueError("spatial_gaussian: per_axis must be False on a line, which has one axis, got True. Leave it out.")


def _check_float16(grid_size: tuple[int, int], floor: float) -> None:
    limit = 65504.0
    norm = ((grid_size[0] - 1) ** 2 + (grid_size[1] - 1) ** 2) / 4 / FLOAT16_SHIFT
    largest = max(norm, float(max(grid_size) - 1)) / floor**2
    if largest > limit:
        raise ValueError(
            f"spatial_bandwidth: scaled position values must be at most {limit:.3g} in float16, got {largest:.3g} on a grid of "
            f"{grid_size[0]} x {grid_size[1]} patches with floor {floor}. Use bfloat16 or float32, or a floor= of at least "
            f"{floor * (largest / limit) ** 0.5:.3g}."
        )


class UntiedPositions(nn.Module):
    """Position-to-position log-weights ``<W_q n(p_i), W_k n(p_j)> / sqrt(d)`` of learned position vectors, without cross terms.

    ``n`` is layer normalization without weights. A block normalizes its tokens in the same way before it projects them.
    Without ``n``, the log-weights would start 2,500 times flatter than those of the content, because timm draws positions of
    standard deviation 0.02. Their final sharpness would then depend on the step size of the optimizer.

    The positions are not added to the tokens. They are kept separate (`Geometry.position_embeddings`), and each layer
    projects them. A score is then content similarity plus position similarity. This is the product of two kernels, as in
    the bilateral filter, with dot products instead of distances. It is one reading of arXiv 2506.10371 ("BSA-dot" in its
    terms), whose exact text is not public. It is close to the untied positions of TUPE and DeBERTa.

    The filter has twice as many columns, so the cost is that of a head twice as wide.

    Args:
        embed_dim: Width of the position vectors.
        num_heads: Number of heads.
        head_dim: Width d of a head.

    Attributes:
        keys_are_separate: Whether the terms are columns, and those of a key depend on its position only. A cache then keeps
            them, so that decoding projects each position once.

    Example:
        >>> geometry = Geometry(torch.zeros(1, 9, 2), torch.ones(9), 0, (3, 3), position_embeddings=torch.rand(1, 9, 64))
        >>> UntiedPositions(64, num_heads=4, head_dim=16)(geometry, geometry, like=torch.empty(0)).q[0].shape
        torch.Size([1, 4, 9, 16])
    """

    keys_are_separate = True

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        # There is no bias, so the zero vector of a prefix token has log-weight 0 with every token.
        self.qk = nn.Linear(embed_dim, 2 * num_heads * head_dim, bias=False, device=device, dtype=dtype)

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        if key is query:
            q, k = self._projected(query, like, self.qk.weight)
        else:
            w_q, w_k = self.qk.weight.chunk(2)
            (q,), (k,) = self._projected(query, like, w_q), self._projected(key, like, w_k)
        return Terms([q], [k], scale=self.head_dim**-0.5)

    def _projected(self, geometry: Geometry, like: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the position vectors in the columns that ``weight`` projects to, tensors of ``[1 or B, H, N, d]``."""
        embeddings = _position_embeddings(geometry)
        batch, length, dim = embeddings.shape
        embeddings = F.layer_norm(embeddings, (dim,))  # the zero vector of a prefix token stays zero
        columns = F.linear(embeddings, weight).reshape(batch, length, -1, self.num_heads, self.head_dim)
        return columns.permute(2, 0, 3, 1, 4).to(like.dtype).unbind(0)


class RelativeTable(nn.Module):
    """Learned log-weight per head and offset of two patches: the relative position bias of Swin and BEiT.

    The log-weights are dense. They cost memory and time ``H x N^2``, and half precision rounds them. On a grid of another
    size, the table is resized bilinearly. A loaded table of another size is resized in the same way.

    Args:
        num_heads: Number of heads.
        grid_size: (height, width) in patches of the grid that the table is made for.

    Example:
        >>> RelativeTable(num_heads=4, grid_size=(14, 14)).table.shape
        torch.Size([4, 27, 27])
    """

    def __init__(self, num_heads: int, grid_size: tuple[int, int], device=None, dtype=None) -> None:
        super().__init__()
        height, width = grid_size
        self.table = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(stretch_loaded)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the table to zeros, so that all offsets count the same."""
        nn.init.zeros_(self.table)

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        return Terms(biases=[OffsetTable(self.table, query, key, like)])

    def extra_repr(self) -> str:
        return f"grid_size=({self.table.shape[1] // 2 + 1}, {self.table.shape[2] // 2 + 1})"


class OffsetTable(NamedTuple):
    """Log-weights that are looked up by the offset of two patches.

    Attributes:
        table: Log-weights per offset, ``[H, 2 height - 1, 2 width - 1]``.
        query: Positions of the queries.
        key: Positions of the keys.
        like: A tensor of the dtype that the filter computes in.
    """

    table: Tensor
    query: Geometry
    key: Geometry
    like: Tensor

    def dense(self) -> Tensor:
        return _look_up(self.table, self.query, self.key, self.like)


def _offsets(query: Geometry, key: Geometry) -> tuple[Tensor, Tensor]:
    """Return ``p_i - p_j``, ``[1 or B, N, M, D]``, and whether both i and j are patches, ``[N, M]``."""
    both = (query.is_patch[:, None] * key.is_patch) > 0
    return query.coordinates[:, :, None] - key.coordinates[:, None], both


def _stretch(table: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(at_least_float32(table)[None], (height, width), mode="bilinear", align_corners=True)[0]


def stretch_loaded(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Resize a table of another grid to the grid of ``module`` before it is loaded."""
    own, loaded = module.table, state_dict.get(prefix + "table")
    assert isinstance(own, Tensor)
    if loaded is not None and loaded.dim() == 3 and loaded.shape[0] == own.shape[0] and loaded.shape != own.shape:
        state_dict[prefix + "table"] = _stretch(loaded, own.shape[1], own.shape[2]).to(loaded.dtype)


def _look_up(table: Tensor, query: Geometry, key: Geometry, like: Tensor) -> Tensor:
    height, width = 2 * key.grid_size[0] - 1, 2 * key.grid_size[1] - 1
    if table.shape[1] != height or table.shape[2] != width:
        table = _stretch(table, height, width)
    offset, both = _offsets(query, key)
    row, column = offset[..., :-1].sum(dim=-1).long() + height // 2, offset[..., -1].long() + width // 2  # a line has no rows
    # A prefix token is at 0, half a patch away from the patches of an even side. Its entry is masked below, so any index in
    # range is correct.
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)) * both
    bias = table.flatten(1)[:, index.flatten()].unflatten(1, index.shape).transpose(0, 1)
    return (bias * both).to(like.dtype)


class Alibi(nn.Module):
    """Laplace kernel in space, ``exp(-|p_i - p_j| / b)``, with the Euclidean distance in patches, or in tokens on a line.

    This is ALiBi with the slopes ``1 / b`` (arXiv 2108.12409; on a grid as in CROMA, arXiv 2311.00566). On a line with causal
    attention, ``-(p_i - p_j) / b`` is a column per token, and the filter stays fused. Otherwise the log-weights are dense.
    They then cost memory and time ``H x N^2``, and half precision rounds them.

    Args:
        num_heads: Number of heads.
        spatial_bandwidth: b in patches, one number or one per head. Default: the slopes of ALiBi, ``b = 2^(8 i / H)`` for i
            from 1 to H. These slopes are made for 1,000 tokens or more. On a grid, the last heads weight all positions almost
            the same.
        learned: Whether b is a parameter. In ALiBi it is not.
        floor: Lower limit of b, in patches.
        gate: Factor g on the log-weight. With 0, all positions count the same.
        learned_gate: Whether g is a parameter, one value per head.

    Raises:
        TypeError: A flag is not a bool, or a bandwidth is not a number.
        ValueError: A bandwidth is not finite or not above the floor, or ``gate`` is not finite.

    Example:
        >>> [round(b) for b in Alibi(num_heads=4).spatial_bandwidth().tolist()]
        [4, 16, 64, 256]
    """

    def __init__(
        self,
        num_heads: int,
        spatial_bandwidth: float | Sequence[float] | None = None,
        learned: bool = False,
        floor: float = 0.25,
        gate: float = 1.0,
        learned_gate: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        initial = spatial_bandwidth
        if initial is None:
            initial = [2.0 ** (8 * i / num_heads) for i in range(1, num_heads + 1)]
        self.gate = Gate(num_heads, gate, learned_gate, "alibi", **dd)
        self.spatial_bandwidth = Bandwidth(initial, num_heads, floor, learned, "spatial_bandwidth", **dd)

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        slopes = self.gate(self.spatial_bandwidth().reciprocal()[:, None, None])
        return Terms(biases=[Laplace(slopes, query, key, like)])


class Laplace(NamedTuple):
    """Log-weights ``-|p_i - p_j| / b``. They are 0 if token i or token j has no position.

    Attributes:
        slopes: Slopes ``1 / b``, ``[H, 1, 1]``.
        query: Positions of the queries.
        key: Positions of the keys.
        like: A tensor of the dtype that the filter computes in.
    """

    slopes: Tensor
    query: Geometry
    key: Geometry
    like: Tensor

    def dense(self) -> Tensor:
        return _laplace(self.slopes, self.query, self.key, self.like)

    def causal_form(self) -> Terms | None:
        """Return columns of ``(p_j - p_i) / b`` on a line, up to a constant per row. They are exact for 8,192 tokens."""
        if self.query.coordinates.shape[-1] > 1 or self.query.num_prefix_tokens > 0:
            return None
        start = self.query.coordinates[:, :1]
        p_i, p_j = ((p - start)[:, None].to(self.slopes.dtype) for p in (self.query.coordinates, self.key.coordinates))
        leading = exact_part(self.slopes, 11)
        along_i, along_j = (torch.cat(split_value(leading * p, self.like.dtype), dim=-1) for p in (-p_i, p_j))
        ones_i, ones_j = torch.ones_like(along_i), torch.ones_like(along_j)
        q, k = torch.cat([along_i, ones_i], dim=-1), torch.cat([ones_j, along_j], dim=-1)
        return Terms([q], [k], key_bias=(self.slopes - leading) * p_j)

    def causal_key_bias(self) -> Tensor | None:
        """Return ``p_j / b`` on a line, ``[1 or B, H, M, 1]``, which differs from the log-weights by a constant per row."""
        p_j = self.key.coordinates
        if p_j.shape[-1] > 1 or self.key.num_prefix_tokens > 0:
            return None
        return self.slopes * (p_j - p_j[:, :1])[:, None].to(self.slopes.dtype)


def _laplace(slopes: Tensor, query: Geometry, key: Geometry, like: Tensor) -> Tensor:
    offset, both = _offsets(query, key)
    distance = offset.square().sum(dim=-1).sqrt() * both
    return (-slopes * distance[:, None].to(slopes.dtype)).to(like.dtype)


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864; axial in 2-D as in EVA-02), computed by timm at the tokens' positions.

    On a line, all d coordinates turn with the index of the token, as in RoFormer, with angles that are computed in float64.

    With a kernel of inner products or distances, the result depends on offsets only. This is not true for the elliptical
    kernel, whose metric weights the two coordinates of a pair differently. In half precision, turned vectors are rounded one
    more time. This costs precision if queries and keys have a large common offset.

    Args:
        head_dim: Width d of a head.
        temperature: Base of the wavelengths. Pairs turn by angles ``p / temperature^(4 i / d)``, p in patches. On a line,
            the exponent is ``2 i / d``. Default: 100 on a grid, the value of DINOv3, which measures positions relative to the
            side of the image; 10,000 on a line, the value of RoFormer.

    Raises:
        ValueError: d is not divisible by 4, or the temperature is not positive and finite.

    Example:
        >>> from imgproc_attn.core import grid_geometry
        >>> x, geometry = torch.rand(1, 2, 9, 16), grid_geometry(3, 3, 0, like=torch.empty(0))
        >>> q, k = Rotary(head_dim=16).rotate(x, x, geometry, geometry)
        >>> torch.equal(q, k), torch.allclose(q.norm(dim=-1), x.norm(dim=-1))
        (True, True)
    """

    def __init__(self, head_dim: int, temperature: float | None = None) -> None:
        super().__init__()
        if head_dim % 4 != 0:
            raise ValueError(f"rotary: head_dim must be divisible by 4, got {head_dim}. Change embed_dim= or num_heads=.")
        self.temperature = None if temperature is None else _check_temperature("rotary", temperature)

    def rotate(self, q: Tensor, k: Tensor, query: Geometry, key: Geometry) -> tuple[Tensor, Tensor]:
        """Return queries ``[B, H, N, d]`` and keys ``[B, H, M, d]``, turned by their positions."""
        q_waves = _waves(q, query, self.temperature)
        k_waves = q_waves if key is query else _waves(k, key, self.temperature)
        return _turn(q, q_waves, query), _turn(k, k_waves, key)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _check_temperature(name: str, temperature: float) -> float:
    number = isinstance(temperature, SupportsFloat) and not isinstance(temperature, bool)
    if not number or not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{name}: temperature must be positive and finite, got {temperature!r}. Give a number such as 100.")
    return float(temperature)


def _waves(x: Tensor, geometry: Geometry, temperature: float | None) -> Tensor:
    """Return sines and cosines at the positions of the tokens, ``[1 or B, 1, N, 2 d]``."""
    size, dim = list(geometry.grid_size), x.shape[-1]
    if geometry.coordinates.shape[-1] == 1:
        angles = _line_angles(geometry, dim // 2, temperature or 10000.0).repeat_interleave(2, dim=-1)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, None].to(at_least_float32(x).dtype)
    table = build_rotary_pos_embed(size, dim=dim, temperature=temperature or 100.0, in_pixels=False, device=x.device)
    return _at_positions(torch.cat(table, dim=-1), geometry)[:, None]


def _line_angles(geometry: Geometry, count: int, temperature: float) -> Tensor:
    """Return the angles ``p / temperature^(i / count)`` of tokens on a line, ``[1, N, count]`` in float64."""
    exponents = torch.arange(count, device=geometry.coordinates.device, dtype=torch.float64) / -count
    return geometry.coordinates.double() * temperature**exponents


def _turn(x: Tensor, waves: Tensor, geometry: Geometry) -> Tensor:
    turned = apply_rot_embed_cat(at_least_float32(x), waves)
    return torch.where(geometry.is_patch[:, None] > 0, turned, x).to(x.dtype)


def _at_positions(table: Tensor, geometry: Geometry) -> Tensor:
    """Return the rows of a table ``[H W, C]`` over the grid at the positions of the tokens, ``[1 or B, N, C]``."""
    height, width = geometry.grid_size
    y, x = geometry.coordinates.unbind(-1)
    return table[(y + (height - 1) / 2).long() * width + (x + (width - 1) / 2).long()]


class SinCos(nn.Module):
    """Fixed sines and cosines of the positions, added to the tokens: timm's, in 2-D as in MAE's ViT (arXiv 2111.06377).

    On a line, they are those of the Transformer (arXiv 1706.03762), all sines before all cosines.

    Args:
        embed_dim: Width of the tokens.
        temperature: Base of the wavelengths.

    Raises:
        ValueError: ``embed_dim`` is not divisible by 4, or the temperature is not positive and finite.

    Example:
        >>> from imgproc_attn.core import grid_geometry
        >>> tokens = torch.zeros(2, 9, 64)
        >>> SinCos(embed_dim=64).embed(tokens, grid_geometry(3, 3, 0, like=tokens)).shape
        torch.Size([2, 9, 64])
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if embed_dim % 4 != 0:
            raise ValueError(f"sincos: embed_dim must be divisible by 4, got {embed_dim}. Change embed_dim=.")
        self.embed_dim = embed_dim
        self.temperature = _check_temperature("sincos", temperature)

    def embed(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Return tokens ``[B, N, C]`` with their positions added. Prefix tokens do not change."""
        return _add_waves(x, geometry, self.temperature)


def _add_waves(x: Tensor, geometry: Geometry, temperature: float) -> Tensor:
    if geometry.coordinates.shape[-1] == 1:
        angles = _line_angles(geometry, x.shape[-1] // 2, temperature)
        return x + torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype)
    table = build_sincos2d_pos_embed(list(geometry.grid_size), x.shape[-1], temperature, device=x.device)
    return x + (_at_positions(table, geometry) * geometry.is_patch[:, None]).to(x.dtype)


def _position_embeddings(geometry: Geometry) -> Tensor:
    embeddings = geometry.position_embeddings
    if embeddings is None:
        raise ValueError(
            "Geometry.position_embeddings must be a tensor for untied positions, got None. Build the model with "
            "positions='untied'."
        )
    return embeddings


torch.fx.wrap("_position_distance")
torch.fx.wrap("_position_embeddings")
torch.fx.wrap("_look_up")
torch.fx.wrap("_laplace")
torch.fx.wrap("_turn")
torch.fx.wrap("_waves")
torch.fx.wrap("_add_waves")
