"""Members on a line of tokens: each against its formula, and columns of positions against float64."""

import math

import pytest
import torch
from reference import errors

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry, line_geometry, take_tokens
from imgproc_attn.core.kernels import DotProduct
from imgproc_attn.core.lifting import lift
from imgproc_attn.core.positions import Alibi, RelativeTable, Rotary, SinCos, SpatialGaussian, UntiedPositions, _check_line
from imgproc_attn.core.relative_buckets import RelativeBuckets
from imgproc_attn.core.terms import Terms, product

F64 = torch.float64
EMPTY = torch.empty(0)


def distances(length, dtype=F64):
    p = torch.arange(length, dtype=dtype)
    return p[:, None] - p


def weights(positions, length, heads=2, is_causal=True, dtype=F64, start=0):
    """The filter of positions without content. With ``start``, that of the last tokens only."""
    key, query = line_geometry(length, EMPTY), line_geometry(length - start, EMPTY, start)
    q, k = (torch.zeros(1, heads, n, 8, dtype=dtype) for n in (length - start, length))
    terms = product(positions(query if start else key, key, q), Terms([q], [k]))
    return SoftmaxFilter()(terms, is_causal=is_causal)


def softmax(log_weights, is_causal=True):
    if is_causal:
        log_weights = log_weights.masked_fill(distances(log_weights.shape[-1]) < 0, -math.inf)
    return log_weights.softmax(-1)


def test_a_line_counts_from_its_first_token():
    line = line_geometry(3, EMPTY, start=4, longest=6)
    assert line.coordinates.tolist() == [[[4], [5], [6]]]
    assert line.grid_size == (1, 7)
    assert line_geometry(3, EMPTY, longest=6).grid_size == (1, 6)


@pytest.mark.parametrize("is_causal", [True, False])
def test_spatial_gaussian_is_its_formula(is_causal):
    found = weights(SpatialGaussian(2, (1, 40), [1.5, 9.0], dtype=F64), 40, is_causal=is_causal).dense()
    expected = softmax(-(distances(40) / torch.tensor([1.5, 9.0], dtype=F64)[:, None, None]).square(), is_causal)
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)


def in_order(q, k):
    """Sum the products of float32 columns one after the other, as processors do. Products are exact in float64."""
    total = torch.zeros(q.shape[0], k.shape[0])
    for a, b in zip(q.double().unbind(-1), k.double().unbind(-1)):
        total = (total.double() + a[:, None] * b).float()
    return total.double()


@pytest.mark.parametrize("h", [0.3, 0.77, 1.5, 3.0, 10.0, 100.0, 1000.0])
@torch.no_grad()
def test_float32_columns_of_4096_tokens_are_exact(h):
    """Log-weights have the error of one product in float32, though they are sums of numbers of up to 2^24 / h^2."""
    line, rows = line_geometry(4096, EMPTY), torch.arange(0, 4096, 65)
    (distance,) = SpatialGaussian(1, (1, 4096), h)(take_tokens(line, rows), line, EMPTY).position_distances
    q, k = lift(Terms(position_distances=[distance]))
    found = in_order(q[0, 0], k[0, 0])
    found = found - found.gather(1, rows[:, None])  # a constant per row is free
    exact = -distance.scale.double()[0] * (rows[:, None] - torch.arange(4096)).double().square()
    assert ((found - exact).abs() <= 2**-20 * exact.abs())[exact > -100].all()
    assert (found < -99)[exact <= -100].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("h", [0.5, 1.5, 10.0, 1000.0])
@torch.no_grad()
def test_error_at_most_twice_that_of_explicit_differences(dtype, h):
    """Some queries of 4,096 tokens, with content. The criterion is that of grids."""
    line, rows = line_geometry(4096, EMPTY), torch.cat([torch.arange(0, 4096, 91), torch.arange(4090, 4096)])
    positions, visible = SpatialGaussian(1, (1, 4096), h), rows[:, None] >= torch.arange(4096)
    q, k, v = (torch.randn(1, 1, n, 64).to(dtype) for n in (len(rows), 4096, 4096))
    bandwidth = positions.spatial_bandwidths["spatial_bandwidth"]()

    def reference(to):
        log = q.to(to) @ k.to(to).mT / 8 - ((rows[:, None] - torch.arange(4096)).to(to) / bandwidth.to(to)).square()
        a = log.masked_fill(~visible, -math.inf).softmax(-1)
        return a @ v.double() if to == F64 else a.to(dtype) @ v

    terms = product(positions(take_tokens(line, rows), line, v), DotProduct(64)(q, k))
    result = SoftmaxFilter()(terms, visible).apply(v)
    assert result.dtype == dtype
    (_, rms), (_, plain) = errors(result, reference(F64)), errors(reference(torch.float32), reference(F64))
    assert rms <= 2 * plain


def test_autocast_does_not_round_positions_on_a_line():
    positions, v = SpatialGaussian(2, (1, 1000), 1.5), torch.randn(1, 2, 1000, 8, dtype=torch.bfloat16)
    expected = weights(positions, 1000, dtype=torch.bfloat16).apply(v)
    with torch.autocast("cpu", torch.bfloat16):
        found = weights(positions, 1000, dtype=torch.bfloat16).apply(v)
    assert torch.equal(found, expected)


def test_gradient_of_a_bandwidth_on_a_line():
    positions = SpatialGaussian(2, (1, 30), [1.5, 4.0], learned_gate=True, gate=0.7, dtype=F64)
    assert torch.autograd.gradcheck(lambda *_: weights(positions, 9).dense(), tuple(positions.parameters()))
    h = positions.spatial_bandwidths["spatial_bandwidth"]
    apart = torch.autograd.grad(weights(positions, 30).dense().square().sum(), h.log_excess)[0]
    dense = softmax(-0.7 * (distances(30) / h()[:, None, None]).square())
    torch.testing.assert_close(apart, torch.autograd.grad(dense.square().sum(), h.log_excess)[0])


def test_too_long_a_line_and_two_axes_are_refused():
    positions, line = SpatialGaussian(2, (1, 64)), line_geometry(4097, EMPTY)
    with pytest.raises(ValueError, match=r"a line must have at most 4096 tokens, .* got 4097\. Use positions='alibi'"):
        positions(line, line, EMPTY)
    line = line_geometry(8, EMPTY)
    with pytest.raises(ValueError, match="per_axis must be False on a line"):
        SpatialGaussian(2, (1, 8), per_axis=True)(line, line, EMPTY)


def test_rounded_products_are_refused_on_gpus():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(ValueError, match=r"must be those of float32, got TF32\. Call torch\.set_float32_matmul_precision"):
            _check_line(64, 1, "cuda")
        _check_line(64, 1, "cpu")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("start", [0, 39, 35])
def test_causal_alibi_needs_no_dense_bias(start):
    positions = Alibi(2, learned=True, dtype=F64)
    operator = weights(positions, 40, start=start)
    assert operator.mask is None or operator.mask.dtype == torch.bool
    slopes = positions.spatial_bandwidth().reciprocal()[:, None, None]
    expected = softmax(-slopes * distances(40))[:, start:]
    torch.testing.assert_close(operator.dense()[0], expected, rtol=1e-12, atol=1e-12)
    loss, reference = operator.dense().square().sum(), expected.square().sum()
    grads = [torch.autograd.grad(x, positions.spatial_bandwidth.log_excess)[0] for x in (loss, reference)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_causal_alibi_is_exact_for_4096_tokens(dtype):
    """With slopes of ALiBi, which are powers of two, and with others."""
    line, rows = line_geometry(4096, EMPTY), torch.arange(0, 4096, 65)
    positions = Alibi(2, [2.0, 3.3])
    (bias,) = positions(take_tokens(line, rows), line, torch.empty(0, dtype=dtype)).biases
    q, k = (t.float() for t in lift(bias.causal_form()))
    slopes = positions.spatial_bandwidth().reciprocal().double()
    for head in range(2):
        found = in_order(q[0, head], k[0, head])
        found = found - found.gather(1, rows[:, None])
        exact = -slopes[head] * (rows[:, None] - torch.arange(4096)).double()
        least = 2**-16 if dtype == torch.float16 else 2**-20  # the smallest float16 times the divisor of key biases
        assert ((found - exact).abs() <= least + 2**-20 * exact.abs())[exact.abs() < 100].all()


def test_alibi_that_looks_ahead_is_dense():
    operator = weights(Alibi(2, dtype=F64), 12, is_causal=False)
    assert operator.mask.is_floating_point()
    expected = softmax(-torch.tensor([2**-4, 2**-8], dtype=F64)[:, None, None] * distances(12).abs(), False)
    torch.testing.assert_close(operator.dense()[0], expected)


def test_alibi_and_spatial_gaussian_in_one_layer():
    """The columns of both cannot come first, so ALiBi stays dense."""
    spatial, alibi = SpatialGaussian(2, (1, 30), 5.0, dtype=F64), Alibi(2, dtype=F64)
    line, zero = line_geometry(30, EMPTY), torch.zeros(1, 2, 30, 8, dtype=F64)
    terms = product(alibi(line, line, zero), product(spatial(line, line, zero), Terms([zero], [zero])))
    slopes = alibi.spatial_bandwidth().reciprocal()[:, None, None]
    expected = softmax(-(distances(30) / 5).square() - slopes * distances(30))
    torch.testing.assert_close(SoftmaxFilter()(terms, is_causal=True).dense()[0], expected, rtol=1e-12, atol=1e-12)


def t5_bucket(memory_minus_query, bidirectional, num_buckets, max_distance):
    """The rule in the words of T5: relative positions are those of the key minus those of the query."""
    bucket, n = 0, -memory_minus_query
    if bidirectional:
        num_buckets //= 2
        bucket += num_buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    large = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact))
    return bucket + min(large, num_buckets - 1)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_relative_buckets_are_those_of_t5(is_causal, num_buckets, max_distance):
    positions = RelativeBuckets(2, (1, 200), is_causal, num_buckets, max_distance, dtype=F64)
    torch.nn.init.normal_(positions.table)
    line = line_geometry(200, EMPTY)
    found = positions(line, line, torch.empty(0, dtype=F64)).biases[0].dense()[0]
    for i in range(0, 200, 7):
        index = [t5_bucket(j - i, not is_causal, num_buckets, max_distance) for j in range(200)]
        assert torch.equal(found[:, i], positions.table[:, index])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": (14, 14)}, r"tokens must lie on a line, got a grid of 14 x 14\. Use positions='relative_table'"),
        ({"num_buckets": 7}, "num_buckets must be a positive multiple of 4, got 7"),
        ({"max_distance": 8}, "max_distance must be larger than 8, the number of exact buckets, got 8"),
    ],
)
def test_relative_buckets_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        RelativeBuckets(**{"num_heads": 2, "grid_size": (1, 64), **options})


def test_relative_table_is_looked_up_by_offset():
    positions = RelativeTable(2, (1, 9), dtype=F64)
    torch.nn.init.normal_(positions.table)
    query, key = line_geometry(2, EMPTY, start=4, longest=9), line_geometry(6, EMPTY, longest=9)
    found = positions(query, key, torch.empty(0, dtype=F64)).biases[0].dense()[0]
    for i in (4, 5):
        assert torch.equal(found[:, i - 4], positions.table[:, 0, [i - j + 8 for j in range(6)]])


def test_rotary_turns_by_the_index():
    """Complex numbers times e^(i p theta), as in RoFormer, from any start."""
    q, k = torch.randn(2, 1, 2, 10, 8, dtype=F64)
    query, key = line_geometry(10, EMPTY, start=1000), line_geometry(10, EMPTY)
    theta = 10000.0 ** (-torch.arange(4, dtype=F64) / 4)
    for x, turned, start in zip((q, k), Rotary(8).rotate(q, k, query, key), (1000, 0)):
        angle = (start + torch.arange(10, dtype=F64))[:, None] * theta
        expected = torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angle), angle)
        )
        torch.testing.assert_close(turned, expected.flatten(-2), rtol=1e-12, atol=1e-12)


def test_sincos_is_that_of_the_transformer():
    added = SinCos(8).embed(torch.zeros(1, 5, 8, dtype=F64), line_geometry(5, EMPTY, start=7))[0]
    for row, p in zip(added, range(7, 12)):
        angles = [p / 10000 ** (2 * i / 8) for i in range(4)]
        expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=F64)
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


def test_untied_positions_of_some_queries():
    positions, table = UntiedPositions(6, 2, 4, dtype=F64), torch.randn(1, 9, 6, dtype=F64)
    key = line_geometry(9, EMPTY)._replace(position_embeddings=table)
    query = take_tokens(key, torch.tensor([7, 8]))
    like = torch.empty(0, dtype=F64)
    every, some = positions(key, key, like), positions(query, key, like)
    torch.testing.assert_close((some.q[0] @ some.k[0].mT), (every.q[0] @ every.k[0].mT)[:, :, 7:])


def test_grids_of_one_row_are_no_lines():
    """An image of one row keeps its centered coordinates and its arithmetic."""
    assert grid_geometry(1, 4, 0, EMPTY).coordinates.shape == (1, 4, 2)
