"""Positions inside a filter: how close two tokens are, whatever they hold.

Three kinds, told apart by their methods:

- Most members map the places of queries and of keys, each a `Geometry`, to `Terms`. A layer takes any number and multiplies the
  kernels.
- Members with ``rotate`` turn queries and keys instead (`Rotary`).
- Members with ``embed`` act once, before the first layer, on the tokens (`SinCos`).

Prefix tokens have no place: their log-weight is 0 with every token, in both directions. They are not rotated, and nothing is
added to them. Learned absolute positions are timm's own ``pos_embed``. You can give members of the first two kinds of your own;
what adds to the tokens has its place in the model, not in a layer.
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
from .lifting import FLOAT16_SHIFT
from .terms import PlaceDistance, Terms


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
        gate: Factor g on the log-weight; 0 sees all places alike.
        learned_gate: Whether g is a parameter, one a head.
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
        """Return the distance of the places, for a filter that computes in the type of ``like``.

        Raises:
            ValueError: float16, and the grid is so large beside the floor that a column would overflow.
        """
        bandwidths = torch.stack([bandwidth() for bandwidth in self.spatial_bandwidths.values()], dim=-1)
        scale = self.gate(bandwidths.pow(-2)[:, None])
        return Terms(places=[_place_distance(query, key, scale, self.floor, like)])


def _place_distance(query: Geometry, key: Geometry, scale: Tensor, floor: float, like: Tensor) -> PlaceDistance:
    if like.dtype == torch.float16:
        _check_float16(key.grid_size, floor)
    return PlaceDistance(query.coordinates, key.coordinates, _placed(query), _placed(key), scale, like)


def _placed(geometry: Geometry) -> Tensor | None:
    return geometry.is_patch if geometry.num_prefix_tokens > 0 else None


def _check_float16(grid_size: tuple[int, int], floor: float) -> None:
    limit = 65504.0
    norm = ((grid_size[0] - 1) ** 2 + (grid_size[1] - 1) ** 2) / 4 / FLOAT16_SHIFT
    largest = max(norm, float(max(grid_size) - 1)) / floor**2
    if largest > limit:
        raise ValueError(
            f"spatial_bandwidth: a grid of {grid_size[0]} x {grid_size[1]} patches with floor {floor} needs columns up to "
            f"{largest:.3g}, beyond float16's {limit:.3g}; use bfloat16 or float32, or a floor= of at least "
            f"{floor * (largest / limit) ** 0.5:.3g}."
        )


class UntiedPositions(nn.Module):
    """Position-to-position log-weights ``<W_q n(p_i), W_k n(p_j)> / sqrt(d)`` of learned position vectors, without cross terms.

    ``n`` is layer normalization without weights, as a block normalizes its tokens before it projects them: else the
    log-weights begin 2,500 times flatter than content's (timm draws positions of standard deviation 0.02), and how
    sharp they become is up to the optimizer's step size.

    The positions are not added to the tokens but kept beside them (`Geometry.position_embeddings`) and projected in each
    layer, so that a score is content similarity plus position similarity: the product of two kernels of the bilateral
    filter, with dot products for distances. One reading of arXiv 2506.10371 ("BSA-dot" in its terms, whose exact text is
    not public), close to the untied positions of TUPE and DeBERTa; named by its formula, not as that paper's method.

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

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        q, k = self._projected(query, like)
        if key is not query:
            _, k = self._projected(key, like)
        return Terms([q], [k], scale=self.head_dim**-0.5)

    def _projected(self, geometry: Geometry, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return query and key columns of position vectors, ``[1 or B, H, N, d]``."""
        embeddings = _position_embeddings(geometry)
        batch, length, dim = embeddings.shape
        embeddings = F.layer_norm(embeddings, (dim,))  # a zero vector, of a prefix token, stays zero
        qk = self.qk(embeddings).reshape(batch, length, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = qk.unbind(0)
        return q.to(like.dtype), k.to(like.dtype)


class RelativeTable(nn.Module):
    """Learned log-weight for each head and offset between two patches: the relative position bias of Swin and BEiT.

    Dense: costs memory and time ``H x N^2``, and half precision rounds the log-weights. On a grid of another size than its own
    the table is stretched to it bilinearly, and so is a table of another size when loaded.

    Args:
        num_heads: Number of heads.
        grid_size: (height, width) of the table's own grid, in patches.
    """

    def __init__(self, num_heads: int, grid_size: tuple[int, int], device=None, dtype=None) -> None:
        super().__init__()
        height, width = grid_size
        self.table = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(stretch_loaded)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All offsets alike."""
        nn.init.zeros_(self.table)

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        return Terms(biases=[OffsetTable(self.table, query, key, like)])

    def extra_repr(self) -> str:
        return f"grid_size=({self.table.shape[1] // 2 + 1}, {self.table.shape[2] // 2 + 1})"


class OffsetTable(NamedTuple):
    """Log-weights looked up by the offset of two patches.

    Attributes:
        table: ``[H, 2 height - 1, 2 width - 1]``.
        query: Places of the queries.
        key: Places of the keys.
        like: A tensor of the type that the filter computes in.
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
    """Before loading: a table of another grid, stretched to this one's."""
    own, loaded = module.table, state_dict.get(prefix + "table")
    assert isinstance(own, Tensor)
    if loaded is not None and loaded.dim() == 3 and loaded.shape[0] == own.shape[0] and loaded.shape != own.shape:
        state_dict[prefix + "table"] = _stretch(loaded, own.shape[1], own.shape[2]).to(loaded.dtype)


def _look_up(table: Tensor, query: Geometry, key: Geometry, like: Tensor) -> Tensor:
    height, width = 2 * key.grid_size[0] - 1, 2 * key.grid_size[1] - 1
    if table.shape[1] != height or table.shape[2] != width:
        table = _stretch(table, height, width)
    offset, both = _offsets(query, key)
    row, column = offset[..., 0].long() + height // 2, offset[..., 1].long() + width // 2
    # a prefix token stands at 0, from where patches of an even side are half a patch off: any index in range will do
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)) * both
    bias = table.flatten(1)[:, index.flatten()].unflatten(1, index.shape).transpose(0, 1)
    return (bias * both).to(like.dtype)


class Alibi2D(nn.Module):
    """Laplace kernel in space, ``exp(-|p_i - p_j| / b)`` with the Euclidean distance in patches: ALiBi in two dimensions.

    ALiBi's slope is ``1 / b`` (arXiv 2108.12409; in 2-D as in CROMA, arXiv 2311.00566). Dense: costs memory and time
    ``H x N^2``, and half precision rounds the log-weights.

    Args:
        num_heads: Number of heads.
        spatial_bandwidth: b in patches, a number or one a head. Default ALiBi's slopes, ``b = 2^(8 i / H)``, i from 1 to H,
            made for sequences of a thousand and more: on a grid the last heads see all places nearly alike.
        learned: Whether b is a parameter; ALiBi's is not.
        floor: b stays above this, in patches.
        gate: Factor g on the log-weight; 0 sees all places alike.
        learned_gate: Whether g is a parameter, one a head.
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
    """The log-weights ``-|p_i - p_j| / b``; 0 where token i or token j has no place.

    Attributes:
        slopes: ``1 / b``, ``[H, 1, 1]``.
        query: Places of the queries.
        key: Places of the keys.
        like: A tensor of the type that the filter computes in.
    """

    slopes: Tensor
    query: Geometry
    key: Geometry
    like: Tensor

    def dense(self) -> Tensor:
        return _laplace(self.slopes, self.query, self.key, self.like)


def _laplace(slopes: Tensor, query: Geometry, key: Geometry, like: Tensor) -> Tensor:
    offset, both = _offsets(query, key)
    distance = offset.square().sum(dim=-1).sqrt() * both
    return (-slopes * distance[:, None].to(slopes.dtype)).to(like.dtype)


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864; axial in 2-D as in EVA-02): timm's, at the places of the tokens.

    Under any kernel of inner products or distances the result depends on offsets alone; not under the elliptical one, whose
    metric weighs the two coordinates of a pair differently. In half precision what is turned is rounded once more, which costs
    precision where queries and keys have a large common offset.

    Args:
        head_dim: Width d of a head.
        temperature: Base of the wavelengths; pairs turn by angles ``p / temperature^(4 i / d)``, p in patches. 100 is DINOv3's,
            whose places are relative to the image's side though.

    Raises:
        ValueError: d is not divisible by 4, or the temperature is not positive and finite.
    """

    def __init__(self, head_dim: int, temperature: float = 100.0) -> None:
        super().__init__()
        if head_dim % 4 != 0:
            raise ValueError(f"rotary: the head's width {head_dim} is not divisible by 4; change embed_dim= or num_heads=.")
        self.temperature = _check_temperature("rotary", temperature)

    def rotate(self, q: Tensor, k: Tensor, query: Geometry, key: Geometry) -> tuple[Tensor, Tensor]:
        """Return queries ``[B, H, N, d]`` and keys ``[B, H, M, d]``, turned by their places."""
        q_waves = _waves(q, query, self.temperature)
        k_waves = q_waves if key is query else _waves(k, key, self.temperature)
        return _turn(q, q_waves, query), _turn(k, k_waves, key)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _check_temperature(name: str, temperature: float) -> float:
    number = isinstance(temperature, SupportsFloat) and not isinstance(temperature, bool)
    if not number or not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{name}: the temperature is {temperature!r}, but must be a positive, finite number, as 100 or 10000.")
    return float(temperature)


def _waves(x: Tensor, geometry: Geometry, temperature: float) -> Tensor:
    """Sines and cosines at the places of the tokens, ``[1 or B, 1, N, 2 d]``."""
    size, dim = list(geometry.grid_size), x.shape[-1]
    table = build_rotary_pos_embed(size, dim=dim, temperature=temperature, in_pixels=False, device=x.device)
    return _at_places(torch.cat(table, dim=-1), geometry)[:, None]


def _turn(x: Tensor, waves: Tensor, geometry: Geometry) -> Tensor:
    turned = apply_rot_embed_cat(at_least_float32(x), waves)
    return torch.where(geometry.is_patch[:, None] > 0, turned, x).to(x.dtype)


def _at_places(table: Tensor, geometry: Geometry) -> Tensor:
    """Rows of a table over the grid, ``[H W, C]``, at the places of the tokens: ``[1 or B, N, C]``."""
    height, width = geometry.grid_size
    y, x = geometry.coordinates.unbind(-1)
    return table[(y + (height - 1) / 2).long() * width + (x + (width - 1) / 2).long()]


class SinCos(nn.Module):
    """Fixed sines and cosines of the places, added to the tokens (2-D as in MAE and ViT, arXiv 2111.06377): timm's.

    Args:
        embed_dim: Width of the tokens.
        temperature: Base of the wavelengths.

    Raises:
        ValueError: The width is not divisible by 4, or the temperature is not positive and finite.
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if embed_dim % 4 != 0:
            raise ValueError(f"sincos: the width {embed_dim} is not divisible by 4; change embed_dim=.")
        self.embed_dim = embed_dim
        self.temperature = _check_temperature("sincos", temperature)

    def embed(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Tokens ``[B, N, C]`` with their places added; prefix tokens unchanged."""
        return _add_waves(x, geometry, self.temperature)


def _add_waves(x: Tensor, geometry: Geometry, temperature: float) -> Tensor:
    table = build_sincos2d_pos_embed(list(geometry.grid_size), x.shape[-1], temperature, device=x.device)
    return x + (_at_places(table, geometry) * geometry.is_patch[:, None]).to(x.dtype)


def _position_embeddings(geometry: Geometry) -> Tensor:
    embeddings = geometry.position_embeddings
    if embeddings is None:
        raise ValueError(
            "Geometry.position_embeddings must be a tensor for untied positions, got None. Build the model with "
            "positions='untied'."
        )
    return embeddings


torch.fx.wrap("_place_distance")
torch.fx.wrap("_position_embeddings")
torch.fx.wrap("_look_up")
torch.fx.wrap("_laplace")
torch.fx.wrap("_turn")
torch.fx.wrap("_waves")
torch.fx.wrap("_add_waves")
