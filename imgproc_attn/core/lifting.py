"""Lifting: factored log-weights become two matrices of columns, ``log K = Q K^T``, in arithmetic that keeps enough precision.

**Distances.** ``-s |q - k|^2 = <2 s (q - m), k - m> + <1, -s |k - m|^2>`` up to a constant in the row, for any m. m is a mean
key. It removes a common offset of q and k, which would cost precision. Autograd treats m as a constant. This is correct,
because the result does not depend on m. Causal filters use the first key as m, because every query may see it.

**Positions.** ``-|p_i - p_j|^2 / h^2 = 2 p_i.p_j / h^2 - |p_i|^2 / h^2 - |p_j|^2 / h^2`` sums large numbers to a small one. The
sum is still exact in float32 if ``1/h^2`` has few bits. Coordinates are small whole or half numbers, so every product and every
partial sum is then a floating-point number. `split_scale` splits ``1/h^2`` into its first 9 bits and the rest, with one set of
columns for each. These columns come first, because a sum runs over columns in order. It stays exact until features join it. On
hardware with another order of summation, the error is that of the large numbers: 1e-7 of R^2/h^2, R from center to corner.

**Lines.** Coordinates of up to 4,096 tokens have 12 bits, so the products above no longer fit into the 24 bits of a float32.
`_line_columns` splits coordinates, squares and scale into parts of few bits. The products of all parts are ordered such that
large ones cancel before small ones are added, and every partial sum near the diagonal is a floating-point number. In half
precision, these terms and all others are computed in float32. On hardware with another order of summation, the error is 1e-7 of
``p^2 / h^2``, with p counted from the first query. The gradient of a bandwidth is a difference of large sums, with rounding
errors of both signs: at 1,024 tokens they are 5 % of one sample's gradient for h = 1.5, and 0.2 % for h = 12.

**Half precision.** Columns of norms or scaled coordinates are split into three parts (high, middle, low). Their sum has the 24
bits of a float32, and products accumulate in float32. Keys are not centered, so they are not rounded. This is correct, because
``<2 s (q - m), m>`` is constant in the row. Only the queries are rounded, once. Bandwidths get their gradient through
half-precision columns. It is unbiased, but in bfloat16 it is wrong by several percent on a single small batch. The largest
float16 is 65,504. Large columns are therefore stored divided by a power of two, and the other side multiplies it back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..utils.named_tuples import changed
from .bandwidths import at_least_float32
from .terms import Distance, PositionDistance, Terms, sum_of

__all__ = ["LONGEST_LINE", "exact_part", "lift", "split_scale", "split_value", "zero_columns"]

# In float16, norms of coordinates are stored divided by this value. The flag columns multiply it back.
FLOAT16_SHIFT = 16.0
# Number of tokens up to which the columns of a distance on a line are exact.
LONGEST_LINE = 4096


def is_half(dtype: torch.dtype) -> bool:
    """Return whether ``dtype`` is float16 or bfloat16."""
    return dtype == torch.float16 or dtype == torch.bfloat16


def split_value(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return tensors of type ``dtype`` whose sum is ``x``: three in half precision, otherwise one.

    The gradient flows through the last part only, so it counts once.
    """
    if not is_half(dtype):
        return [x.to(dtype)]
    bits, least = (11, 2.0**-14) if dtype == torch.float16 else (8, 1e-30)
    high = _leading_bits(x.detach(), bits, least)
    rest = x - high
    middle = _leading_bits(rest.detach(), bits, least)
    return [high.to(dtype), middle.to(dtype), (rest - middle).to(dtype)]


def _leading_bits(x: Tensor, bits: int, least: float = 1e-30) -> Tensor:
    """Return ``x`` rounded to ``bits`` significant bits, in its own dtype. Values below ``least`` keep fewer bits.

    The code rounds to whole numbers, because compilers remove casts to a smaller type and back. They also fuse sums and
    differences that are meant to round. 2^n of a whole n is exact. ONNX has all these operations, but not frexp.
    """
    unit = torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=least))) - (bits - 1))
    return torch.round(x / unit) * unit


def exact_part(x: Tensor, bits: int) -> Tensor:
    """Return the first ``bits`` significant bits of ``x``, rounded. Autograd treats them as a constant."""
    return _leading_bits(x.detach(), bits)


def split_scale(scale: Tensor, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return tensors of type ``dtype`` whose sum is ``scale * x``, for ``x`` of few bits (coordinates and their squares).

    float64 needs one tensor. float32 needs two: the first 9 bits of ``scale``, and the rest. With 9 bits, every partial sum is
    exact on grids up to 64 x 64. Half precision needs three.

    Args:
        scale: Factor ``[H, 1, C]``, float32 or float64.
        x: Values ``[1 or B, 1, N, C]``, float32.
        dtype: Dtype that the filter computes in.

    Returns:
        One, two or three tensors ``[1 or B, H, N, C]``, most significant first.
    """
    if dtype != torch.float32:
        return split_value(scale * x, dtype)
    high = _leading_bits(scale.detach().to(torch.float32), 9)
    return [high * x.to(torch.float32), ((scale - high) * x).to(torch.float32)]


def lift(terms: Terms) -> tuple[Tensor, Tensor]:
    """Return query columns ``[B, H, N, C]`` and key columns ``[B, H, M, C]``. C is padded with zeros to a multiple of 8.

    Columns of positions come first, because their sum is exact only before features join it.

    Raises:
        ValueError: ``terms`` hold neither columns nor a distance.
    """
    terms = _widened(terms)
    q, k, key_bias = [], [], terms.key_bias
    for position in terms.position_distances:
        columns_q, columns_k, bias = _line_columns(position) if _is_line(position) else _position_columns(position)
        q.append(columns_q)
        k.append(columns_k)
        key_bias = sum_of(key_bias, bias)
    q, k = [*q, *terms.q], [*k, *terms.k]
    for distance in terms.distances[:-1]:
        columns_q, columns_k, bias = _distance_columns(distance, _center(distance))
        q.append(columns_q)
        k.append(columns_k)
        key_bias = sum_of(key_bias, bias)
    if len(terms.distances) > 0:
        return _lift_last(q, k, key_bias, terms.distances[-1])
    if len(q) == 0:
        raise ValueError("Terms must hold columns or a distance, got neither. Add zero columns [B, H, N, 1] to a dense bias.")
    if key_bias is not None:
        ones, biases = _bias_columns(key_bias, k[0].dtype, q[0].shape[2])
        q, k = [*q, ones], [*k, biases]
    return _side_by_side(q), _side_by_side(k)


def _lift_last(q: list[Tensor], k: list[Tensor], key_bias: Tensor | None, distance: Distance) -> tuple[Tensor, Tensor]:
    """Lift a distance and append its columns to the other columns."""
    center = _center(distance)
    if torch.compiler.is_compiling() or is_half(distance.q.dtype) or _is_transformed():
        scaled, centered, bias = _distance_columns(distance, center)
        ones, biases = _bias_columns(bias if key_bias is None else bias + key_bias, distance.q.dtype, distance.q.shape[2])
        return _side_by_side([*q, scaled, ones]), _side_by_side([*k, centered, biases])
    front_q = torch.cat(q, dim=-1) if len(q) > 0 else None
    front_k = torch.cat(k, dim=-1) if len(k) > 0 else None
    lift_distance = _LiftDistance.apply if torch.is_grad_enabled() else _LiftDistance.forward
    return lift_distance(front_q, front_k, distance.q, distance.k, center, distance.scale, key_bias)


def _position_columns(distance: PositionDistance) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return query columns, key columns and key bias of ``-s |p_i - p_j|^2 = 2 s p_i.p_j - s |p_i|^2 - s |p_j|^2``.

    The norms are multiplied by the flag of the other token. A token without a position has coordinates 0, so it needs no
    special case. The scale is applied to the side whose values have more bits. The other side is exact in every dtype.

    If all queries have a position, the key norm needs a column for its leading part only. The rest joins the key bias, which
    saves columns.
    """
    dtype = distance.like.dtype
    heads, axes, dim = distance.scale.shape[0], distance.scale.shape[-1], distance.k.shape[-1]
    parts_q = _position_parts(distance.q, distance.scale, dtype)
    parts_k = parts_q if distance.k is distance.q else _position_parts(distance.k, distance.scale, dtype)
    flag_q = _flags(distance.q, distance.q_has_position, heads, axes, dtype)
    flag_k = flag_q if distance.k is distance.q else _flags(distance.k, distance.k_has_position, heads, axes, dtype)
    key = distance.k[:, None].to(dtype).expand(-1, heads, -1, -1)
    q, k, key_bias = [], [], None
    for part_q, part_k in zip(parts_q, parts_k):  # One whole part at a time: its sum is exact before the next part begins.
        q.append(part_q)
        k += [key, flag_k]
        rest = part_k[..., dim:]
        if len(q) == 1 or distance.q_has_position is not None:
            q.append(flag_q)
            k.append(rest)
        else:
            rest = at_least_float32(rest.sum(dim=-1, keepdim=True) if axes > 1 else rest)
            key_bias = sum_of(key_bias, rest * _shift(dtype) if dtype == torch.float16 else rest)
    return torch.cat(q, dim=-1), torch.cat(k, dim=-1), key_bias


def _is_line(distance: PositionDistance) -> bool:
    return distance.k.shape[-1] == 1


def _widened(terms: Terms) -> Terms:
    """Return terms in float32 if they are in half precision and hold a distance on a line, which has no columns there."""
    if not any(_is_line(distance) and is_half(distance.like.dtype) for distance in terms.position_distances):
        return terms
    return changed(
        terms,
        q=[at_least_float32(q) for q in terms.q],
        k=[at_least_float32(k) for k in terms.k],
        distances=[changed(d, q=at_least_float32(d.q), k=at_least_float32(d.k)) for d in terms.distances],
        position_distances=[changed(d, like=at_least_float32(d.like[:0])) for d in terms.position_distances],
    )


def _line_columns(distance: PositionDistance) -> tuple[Tensor, Tensor, None]:
    """Return query columns and key columns of ``-s (p_i - p_j)^2`` on a line. There is no key bias.

    With ``p = 64 a + b``, ``p^2 = 4096 c + d`` and s in two parts, all factors below are whole numbers of few bits times a
    power of two. Coarse products are multiples of 4096 units of s, cross products of 128 units, fine products of one.
    """
    dtype, heads = distance.like.dtype, distance.scale.shape[0]
    start = distance.q[:, :1]  # A single query is then at 0, and its sums have no large terms at all.
    a_q, b_q, c_q, d_q = _digits((distance.q - start)[:, None].to(dtype))
    a_k, b_k, c_k, d_k = _digits((distance.k - start)[:, None].to(dtype))
    one_q, one_k = torch.ones_like(a_q), torch.ones_like(a_k)
    s = distance.scale.to(dtype)
    bits = 40 if dtype == torch.float64 else 11
    whole, leading = exact_part(s, 2 * bits), exact_part(s, bits)
    rest = (whole - leading) + (s - s.detach())  # The gradient flows through this part only, so it counts once.

    def coarse(s: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(8192 * s * a_q, a_k), (one_q, -4096 * s * c_k), (-4096 * s * c_q, one_k)]

    def cross(s: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(128 * s * a_q, b_k), (128 * s * b_q, a_k)]

    def fine(s: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(2 * s * b_q, b_k), (one_q, -s * d_k)]

    pairs = [*coarse(leading), *cross(leading), *coarse(rest), *fine(leading), (-leading * d_q, one_k)]
    pairs += [*cross(rest), *fine(rest)]
    q, k = (torch.cat([x.expand(-1, heads, -1, -1) for x in columns], dim=-1) for columns in zip(*pairs))
    return q, k, None


def _digits(p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return whole numbers a, b, c, d with ``p = 64 a + b`` and ``p^2 = 4096 c + d``, for a whole p of at most 4,096."""
    a, c = torch.round(p / 64), torch.round(p * p / 4096)
    return a, p - 64 * a, c, p * p - 4096 * c


def _position_parts(coordinates: Tensor, scale: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return parts whose sum is ``s (2 p, -|p|^2)``, with the norm divided by `_shift`, and one norm per axis if s has axes."""
    p = coordinates[:, None].to(scale.dtype)
    norm = p * (p * (-1 / _shift(dtype)))
    if scale.shape[-1] == 1:
        norm = norm.sum(dim=-1, keepdim=True)
    else:
        scale = torch.cat([scale, scale], dim=-1)
    return split_scale(scale, torch.cat([2 * p, norm], dim=-1), dtype)


def _flags(coordinates: Tensor, has_position: Tensor | None, heads: int, axes: int, dtype: torch.dtype) -> Tensor:
    """Return columns that are `_shift` for tokens with a position and 0 for others."""
    flags = coordinates.new_ones(coordinates.shape[1]) if has_position is None else has_position
    return (flags * _shift(dtype)).to(dtype)[None, None, :, None].expand(coordinates.shape[0], heads, -1, axes)


def _shift(dtype: torch.dtype) -> float:
    """Return the divisor of the norms of coordinates, 1 except in float16."""
    return FLOAT16_SHIFT if dtype == torch.float16 else 1.0


def _is_transformed() -> bool:
    """Return whether `torch.func`, forward-mode differentiation or a tracer is active. They accept plain tensor code only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def _center(distance: Distance) -> Tensor:
    """Return m, the mean of every fourth key. Any m is correct, and this one costs less than the mean of all keys."""
    k = distance.k[:, :, :1] if distance.is_causal else distance.k[:, :, ::4]
    return at_least_float32(k).mean(dim=2, keepdim=True).detach()


def _distance_columns(distance: Distance, center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return query columns, key columns and key bias of a distance, in plain tensor code for every dtype."""
    scale = distance.scale.to(center.dtype)
    scaled = torch.addcmul(center * (-2 * scale), at_least_float32(distance.q), 2 * scale)
    centered = at_least_float32(distance.k) - center
    bias = centered.square().sum(dim=-1, keepdim=True) * -scale
    dtype = distance.q.dtype
    if not is_half(dtype):
        return scaled, centered, bias
    if dtype == torch.float16:
        scaled = scaled.clamp(-65504.0, 65504.0)
    return scaled.to(dtype), distance.k, bias


def _bias_columns(key_bias: Tensor, dtype: torch.dtype, queries: int) -> tuple[Tensor, Tensor]:
    """Return columns of ``queries`` queries and of the keys for a key bias. Half precision splits the bias."""
    shift = 1.0
    if dtype == torch.float16:
        shift = 256.0
        key_bias = key_bias.clamp(min=-65504.0 * shift)
    parts = torch.cat(split_value(key_bias / shift, dtype), dim=-1)
    return torch.full_like(parts[:, :, :1], shift).expand(-1, -1, queries, -1), parts


def zero_columns(like: Tensor, batch: int, count: int) -> Tensor:
    """Return zeros ``[batch, H, N, count]`` that take no memory."""
    return like.new_zeros(1).expand(batch, like.shape[1], like.shape[2], count)


def _side_by_side(blocks: list[Tensor]) -> Tensor:
    """Return blocks of columns concatenated and padded with zeros to a multiple of 8."""
    batch, width = blocks[-1].shape[0], 0
    for block in blocks:
        if block.shape[0] != 1:
            batch = block.shape[0]
        width += block.shape[-1]
    padding = -width % 8
    if len(blocks) == 1 and padding == 0:
        return blocks[0]
    columns = [block.expand(batch, -1, -1, -1) for block in blocks]
    if padding > 0:
        columns.append(zero_columns(columns[0], batch, padding))
    return torch.cat(columns, dim=-1)


class _LiftDistance(torch.autograd.Function):
    """Columns of a distance appended to other columns, written straight into the result.

    This is `_distance_columns` for float32 and float64, outside compilers and `torch.func`. It saves memory passes and saved
    tensors of the plain code, half of the cost of the lift at 196 tokens. Tests check that both agree, gradients included.
    """

    @staticmethod
    def forward(
        front_q: Tensor | None,
        front_k: Tensor | None,
        q: Tensor,
        k: Tensor,
        center: Tensor,
        scale: Tensor,
        key_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch, heads, length, dim = q.shape
        start = 0 if front_q is None else front_q.shape[-1]
        width = start + dim + 1
        width += -width % 8
        lifted_q = q.new_empty(batch, heads, length, width)
        lifted_k = k.new_empty(batch, heads, k.shape[2], width)
        if front_q is not None and front_k is not None:
            lifted_q[..., :start] = front_q
            lifted_k[..., :start] = front_k
        stop = start + dim
        scale = scale.to(q.dtype)
        centered = lifted_k[..., start:stop]
        torch.addcmul(center * (-2 * scale), q, 2 * scale, out=lifted_q[..., start:stop])
        torch.sub(k, center, out=centered)
        lifted_q[..., stop:] = 1.0  # also on the padding, where the keys are 0
        bias = torch.linalg.vector_norm(centered, dim=-1, keepdim=True).square_().mul_(-scale)
        lifted_k[..., stop : stop + 1] = bias if key_bias is None else bias.add_(key_bias)
        lifted_k[..., stop + 1 :] = 0.0
        return lifted_q, lifted_k

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        front_q, front_k, q, k, center, scale, key_bias = inputs
        ctx.start = 0 if front_q is None else front_q.shape[-1]
        ctx.front_shapes = None if front_q is None else (front_q.shape, front_k.shape)
        ctx.key_bias_shape = None if key_bias is None else key_bias.shape
        ctx.save_for_backward(q, k, center, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = grads
        q, k, center, scale = ctx.saved_tensors
        s = scale.to(q.dtype)
        start, stop = ctx.start, ctx.start + q.shape[-1]
        grad_scaled, grad_centered = grad_q[..., start:stop], grad_k[..., start:stop]
        grad_bias = grad_k[..., stop : stop + 1]
        centered = k - center
        result_q = grad_scaled * (2 * s)
        result_k = torch.addcmul(grad_centered, centered, grad_bias * (-2 * s))
        result_scale = None
        if ctx.needs_input_grad[5]:
            along_q = (grad_scaled * (q - center)).sum(dim=(0, 2, 3))
            along_k = (grad_bias[..., 0] * centered.square().sum(dim=-1)).sum(dim=(0, 2))
            result_scale = (2 * along_q - along_k)[:, None, None].to(scale.dtype)
        front: list[Tensor | None] = [None, None]
        if ctx.front_shapes is not None:
            front = [g[..., :start].sum_to_size(shape) for g, shape in zip((grad_q, grad_k), ctx.front_shapes)]
        result_bias = None if ctx.key_bias_shape is None else grad_bias.sum_to_size(ctx.key_bias_shape)
        return front[0], front[1], result_q, result_k, None, result_scale, result_bias
