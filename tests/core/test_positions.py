import math

import pytest
import timm.layers
import torch
from reference import spatial_log_weights

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import Geometry, grid_geometry
from imgproc_attn.core.lifting import lift
from imgproc_attn.core.positions import (
    Alibi,
    RelativeTable,
    Rotary,
    SinCos,
    SpatialGaussian,
    UntiedPositions,
    log_spaced,
)
from imgproc_attn.core.terms import Terms, product


def test_log_spaced():
    assert log_spaced(1.5, 24.0, 3) == pytest.approx([1.5, 6.0, 24.0])
    assert log_spaced(1.5, 24.0, 1) == [1.5]


def test_default_bandwidths():
    positions = SpatialGaussian(3, (14, 10))
    torch.testing.assert_close(
        positions.spatial_bandwidths["spatial_bandwidth"](), torch.tensor([1.5, (1.5 * 28) ** 0.5, 28.0])
    )


def weights(positions, geometry, heads, dtype=torch.float64):
    like = torch.empty(0, dtype=dtype)
    zero = torch.zeros(1, heads, geometry.is_patch.shape[0], 8, dtype=dtype)
    return SoftmaxFilter()(product(positions(geometry, geometry, like), Terms([zero], [zero]))).dense()


def test_is_a_normalized_gaussian_blur():
    """Without content, the filter is a Gaussian blur of sigma = h / sqrt(2), cut off at the border and renormalized."""
    h, grid = 2.0, (7, 11)
    geometry = grid_geometry(*grid, 0, torch.empty(0))
    a = weights(SpatialGaussian(1, grid, h, dtype=torch.float64), geometry, 1)[0, 0].reshape(7, 11, 7, 11)
    sigma = h / math.sqrt(2)
    y, x = torch.arange(7.0, dtype=torch.float64), torch.arange(11.0, dtype=torch.float64)
    gy, gx = (torch.exp(-((t[:, None] - t) ** 2) / (2 * sigma**2)) for t in (y, x))
    blur = torch.einsum("ac,bd->abcd", gy / gy.sum(1, keepdim=True), gx / gx.sum(1, keepdim=True))
    torch.testing.assert_close(a, blur)


def test_flip_and_transpose():
    geometry = grid_geometry(5, 5, 0, torch.empty(0))
    a = weights(SpatialGaussian(1, (5, 5), 1.7, dtype=torch.float64), geometry, 1)[0, 0].reshape(5, 5, 5, 5)
    torch.testing.assert_close(a, a.flip(0, 2))
    torch.testing.assert_close(a, a.permute(1, 0, 3, 2))


def test_per_axis_looks_along_one_axis():
    positions = SpatialGaussian(1, (5, 5), 1.0, per_axis=True, dtype=torch.float64)
    with torch.no_grad():
        positions.spatial_bandwidths["spatial_bandwidth_y"].log_excess.fill_(math.log(100.0))
        positions.spatial_bandwidths["spatial_bandwidth_x"].log_excess.fill_(math.log(0.05))
    geometry = grid_geometry(5, 5, 0, torch.empty(0))
    a = weights(positions, geometry, 1)[0, 0].reshape(5, 5, 5, 5)
    torch.testing.assert_close(a[2, 2, :, 2], torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-2, atol=1e-2)


def test_prefix_tokens_have_no_place():
    geometry = grid_geometry(4, 4, 2, torch.empty(0))
    a = weights(SpatialGaussian(1, (4, 4), 0.6, dtype=torch.float64), geometry, 1)[0, 0]
    length = a.shape[0]
    torch.testing.assert_close(a[:2], torch.full((2, length), 1 / length, dtype=torch.float64))
    assert torch.equal(a[2:, 0], a[2:, 1])
    torch.testing.assert_close(a[2:, 0], a[2:, 2:].diagonal())  # the same as the weight of a patch on itself, at distance 0


def test_huge_bandwidth_is_no_filter():
    geometry = grid_geometry(4, 6, 1, torch.empty(0))
    a = weights(SpatialGaussian(2, (4, 6), 1e5, dtype=torch.float64), geometry, 2)
    torch.testing.assert_close(a, torch.full_like(a, 1 / 25), rtol=1e-7, atol=0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.2])
def test_refuses_bandwidths(bad):
    with pytest.raises(ValueError, match=r"spatial_bandwidth must be .* above its floor 0\.25"):
        SpatialGaussian(2, (4, 4), bad)


def test_float16_overflow_is_refused_by_name():
    positions = SpatialGaussian(1, (64, 64), 1.0, floor=0.02)
    geometry = grid_geometry(64, 64, 0, torch.empty(0))
    positions(geometry, geometry, torch.empty(0, dtype=torch.bfloat16))
    with pytest.raises(
        ValueError, match=r"at most 6\.55e\+04 in float16, got .* 64 x 64 patches with floor 0\.02\. Use bfloat16"
    ):
        positions(geometry, geometry, torch.empty(0, dtype=torch.float16))


@pytest.mark.parametrize(("side", "floor"), [(14, 0.0101), (33, 0.02), (64, 0.03), (20, 0.016)])
def test_float16_columns_are_finite_or_refused(side, floor):
    positions = SpatialGaussian(1, (side, side), floor * 1.0001, floor=floor)
    geometry = grid_geometry(side, side, 1, torch.empty(0))
    try:
        terms = positions(geometry, geometry, torch.empty(0, dtype=torch.float16))
    except ValueError:
        return
    assert all(t.isfinite().all() for t in lift(terms))


def test_untied_has_no_cross_terms_and_none_with_prefix_tokens():
    geometry = grid_geometry(3, 3, 1, torch.empty(0))
    stream = torch.randn(1, 10, 12, dtype=torch.float64)
    stream[:, 0] = 0
    geometry = Geometry(geometry.coordinates, geometry.is_patch, 1, geometry.grid_size, stream)
    positions = UntiedPositions(12, 2, 6, dtype=torch.float64)
    terms = positions(geometry, geometry, torch.empty(0, dtype=torch.float64))
    w_q, w_k = positions.qk.weight.chunk(2)
    place = (stream - stream.mean(-1, keepdim=True)) / (stream.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    log = terms.scale * terms.q[0] @ terms.k[0].mT
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6)
        expected = (place[0] @ w_q[rows].T) @ (place[0] @ w_k[rows].T).T / 6**0.5
        torch.testing.assert_close(log[0, head], expected)
    assert torch.equal(log[:, :, 0], torch.zeros(1, 2, 10, dtype=torch.float64))
    assert torch.equal(log[:, :, :, 0], torch.zeros(1, 2, 10, dtype=torch.float64))


def test_untied_without_position_embeddings_is_refused():
    geometry = grid_geometry(3, 3, 0, torch.empty(0))
    with pytest.raises(ValueError, match="positions='untied'"):
        UntiedPositions(12, 2, 6)(geometry, geometry, torch.empty(0))


def test_reference_agrees_with_itself_on_one_pair():
    geometry = grid_geometry(3, 4, 1, torch.empty(0))
    log = spatial_log_weights(geometry, torch.tensor([[2.0]]), torch.float64)
    assert log[0, 0, 1, 12].item() == pytest.approx(-(2**2 + 3**2) / 4)
    assert log[0, 0, 0, 5].item() == 0


def bias(positions, geometry, heads, dtype=torch.float64):
    """Return the dense log-weights of a kernel on positions."""
    return positions(geometry, geometry, torch.empty(0, dtype=dtype)).biases[0].dense().expand(-1, heads, -1, -1)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 2), (1, 4)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_relative_table_is_timms(grid, prefix):
    theirs = timm.layers.RelPosBias(grid, 3)
    ours = RelativeTable(3, grid)
    table = torch.randn(3, 2 * grid[0] - 1, 2 * grid[1] - 1)
    with torch.no_grad():
        ours.table.copy_(table)
        theirs.relative_position_bias_table.copy_(table.flatten(1).T)
    found = bias(ours, grid_geometry(*grid, prefix, torch.empty(0)), 3, torch.float32)
    assert torch.equal(found[..., prefix:, prefix:], theirs.get_bias())
    assert found[..., :prefix, :].abs().sum() + found[..., :prefix].abs().sum() == 0


def test_relative_table_stretches_to_another_grid():
    """Corners keep their values, and a table that is linear in the offset stays linear."""
    ours = RelativeTable(1, (3, 3), dtype=torch.float64)
    with torch.no_grad():
        ours.table.copy_(torch.arange(-2.0, 3.0)[:, None] * 10 + torch.arange(-2.0, 3.0))
    found = bias(ours, grid_geometry(5, 9, 0, torch.empty(0)), 1)[0, 0].reshape(5, 9, 5, 9)
    y, x = torch.arange(5.0, dtype=torch.float64), torch.arange(9.0, dtype=torch.float64)
    expected = (y[:, None] - y)[:, None, :, None] * 10 / 2 + (x[:, None] - x)[None, :, None, :] / 4
    torch.testing.assert_close(found, expected)


def test_alibi_is_a_laplace_kernel_of_the_distance():
    grid = (3, 5)
    geometry = grid_geometry(*grid, 1, torch.empty(0))
    positions = Alibi(4, dtype=torch.float64)
    slopes = 1 / positions.spatial_bandwidth()
    torch.testing.assert_close(slopes, torch.tensor([2**-2, 2**-4, 2**-6, 2**-8], dtype=torch.float64))
    found = bias(positions, geometry, 4)[0]
    for i, j in [(0, 0), (0, 14), (7, 3), (4, 10)]:
        distance = math.dist(divmod(i, 5), divmod(j, 5))
        torch.testing.assert_close(found[:, i + 1, j + 1], -slopes * distance)
    assert found[:, 0].abs().sum() + found[:, :, 0].abs().sum() == 0


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_rotary_is_timms(prefix):
    """Queries, keys and prefix tokens equal those of timm's attention with rotary positions."""
    grid, dim = (3, 5), 16
    q, k = torch.randn(2, 2, 4, 15 + prefix, dim)
    ours = Rotary(dim, temperature=50.0)
    emb = timm.layers.RotaryEmbeddingCat(dim, temperature=50.0, in_pixels=False).get_embed(list(grid))
    geometry = grid_geometry(*grid, prefix, q)
    for x, turned in zip((q, k), ours.rotate(q, k, geometry, geometry)):
        assert torch.equal(turned[:, :, :prefix], x[:, :, :prefix])
        torch.testing.assert_close(turned[:, :, prefix:], timm.layers.apply_rot_embed_cat(x[:, :, prefix:], emb))


def test_rotary_knows_offsets_alone():
    """With the same content everywhere, the log-weight depends only on the offset of two positions."""
    grid, dim = (5, 7), 16
    q, k = torch.randn(2, 1, 1, 1, dim, dtype=torch.float64).expand(2, 1, 1, 35, dim)
    geometry = grid_geometry(*grid, 0, torch.empty(0))
    q, k = Rotary(dim).rotate(q, k, geometry, geometry)
    scores = (q @ k.mT)[0, 0].reshape(5, 7, 5, 7)
    torch.testing.assert_close(scores[:4, :6, 0, 0], scores[1:, 1:, 1, 1], rtol=1e-6, atol=1e-6)


def test_sincos_is_timms():
    grid, dim = (4, 7), 24
    x = torch.randn(2, 2 + 28, dim)
    added = SinCos(dim).embed(x, grid_geometry(*grid, 2, x)) - x
    torch.testing.assert_close(added[0, 2:], timm.layers.build_sincos2d_pos_embed(list(grid), dim), rtol=1e-5, atol=1e-5)
    assert added[:, :2].abs().sum() == 0


@pytest.mark.parametrize(("make", "message"), [(lambda: Rotary(6), "head_dim"), (lambda: SinCos(30), "embed_dim")])
def test_widths_must_be_divisible_by_four(make, message):
    with pytest.raises(ValueError, match=f"{message} must be divisible by 4, got"):
        make()


@pytest.mark.parametrize("positions", [SpatialGaussian(2, (4, 3), gate=0.0), Alibi(2, gate=0.0), RelativeTable(2, (4, 3))])
def test_gates_at_zero_weight_all_positions_equally(positions):
    a = weights(positions, grid_geometry(4, 3, 1, torch.empty(0)), 2)
    assert torch.equal(a, torch.full_like(a, 1 / 13))


@pytest.mark.parametrize("gate", [-0.5, 0.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_of_the_spatial_gaussian_multiplies_its_log_weight(gate, dtype):
    geometry = grid_geometry(6, 5, 1, torch.empty(0))
    positions = SpatialGaussian(1, (6, 5), 3.0, gate=gate, learned_gate=True, dtype=dtype)
    expected = (gate * spatial_log_weights(geometry, torch.tensor([[3.0]]), dtype)).softmax(-1)
    torch.testing.assert_close(weights(positions, geometry, 1, dtype), expected)


@pytest.mark.parametrize("make", [lambda: Alibi(2, learned=True, learned_gate=True, dtype=torch.float64)])
def test_gradients_of_dense_positions(make):
    positions, geometry = make(), grid_geometry(2, 3, 1, torch.empty(0))
    parameters = tuple(positions.parameters())
    assert len(parameters) == 2
    assert torch.autograd.gradcheck(lambda *_: weights(positions, geometry, 2), parameters)


def test_gradients_of_a_gated_spatial_gaussian():
    positions = SpatialGaussian(2, (2, 3), 1.2, gate=0.4, learned_gate=True, dtype=torch.float64)
    geometry = grid_geometry(2, 3, 1, torch.empty(0))
    assert torch.autograd.gradcheck(lambda *_: weights(positions, geometry, 2), tuple(positions.parameters()))


def test_gradient_of_a_stretched_table():
    positions = RelativeTable(2, (2, 3), dtype=torch.float64)
    geometry = grid_geometry(3, 2, 1, torch.empty(0))
    assert torch.autograd.gradcheck(lambda *_: weights(positions, geometry, 2), tuple(positions.parameters()))
