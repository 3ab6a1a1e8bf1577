import math

import pytest
import torch
from reference import spatial_log_weights

from imgproc_attn.filters import SoftmaxFilter
from imgproc_attn.geometry import Geometry, grid_geometry
from imgproc_attn.positions import SpatialGaussian, UntiedPositions, log_spaced
from imgproc_attn.terms import Terms, product


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
    return SoftmaxFilter().weights(product(positions(geometry, like), Terms([zero], [zero])))


def test_is_a_normalised_gaussian_blur():
    """Without content the filter is a blur with the Gaussian of sigma = h / sqrt(2), cut off at the border and renormalised."""
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
    torch.testing.assert_close(a[2:, 0], a[2:, 2:].diagonal())  # a distance of 0, as of a patch to itself


def test_huge_bandwidth_is_no_filter():
    geometry = grid_geometry(4, 6, 1, torch.empty(0))
    a = weights(SpatialGaussian(2, (4, 6), 1e5, dtype=torch.float64), geometry, 2)
    torch.testing.assert_close(a, torch.full_like(a, 1 / 25), rtol=1e-7, atol=0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.2])
def test_refuses_bandwidths(bad):
    with pytest.raises(ValueError, match=r"spatial_bandwidth is .* above its floor 0\.25"):
        SpatialGaussian(2, (4, 4), bad)


def test_float16_overflow_is_refused_by_name():
    positions = SpatialGaussian(1, (64, 64), 1.0, floor=0.02)
    geometry = grid_geometry(64, 64, 0, torch.empty(0))
    positions(geometry, torch.empty(0, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"64 x 64 patches with floor 0\.02 .* float16's 6\.55e\+04; use bfloat16"):
        positions(geometry, torch.empty(0, dtype=torch.float16))


@pytest.mark.parametrize(("side", "floor"), [(14, 0.0101), (33, 0.02), (64, 0.03), (20, 0.016)])
def test_float16_columns_are_finite_or_refused(side, floor):
    positions = SpatialGaussian(1, (side, side), floor * 1.0001, floor=floor)
    try:
        terms = positions(grid_geometry(side, side, 1, torch.empty(0)), torch.empty(0, dtype=torch.float16))
    except ValueError:
        return
    assert all(t.isfinite().all() for t in [*terms.q, *terms.k])


def test_untied_has_no_cross_terms_and_none_with_prefix_tokens():
    geometry = grid_geometry(3, 3, 1, torch.empty(0))
    stream = torch.randn(1, 10, 12, dtype=torch.float64)
    stream[:, 0] = 0
    geometry = Geometry(geometry.coordinates, geometry.is_patch, 1, geometry.grid_size, stream)
    positions = UntiedPositions(12, 2, 6, dtype=torch.float64)
    terms = positions(geometry, torch.empty(0, dtype=torch.float64))
    w_q, w_k = positions.qk.weight.chunk(2)
    log = terms.scale * terms.q[0] @ terms.k[0].mT
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6)
        expected = (stream[0] @ w_q[rows].T) @ (stream[0] @ w_k[rows].T).T / 6**0.5
        torch.testing.assert_close(log[0, head], expected)
    assert torch.equal(log[:, :, 0], torch.zeros(1, 2, 10, dtype=torch.float64))
    assert torch.equal(log[:, :, :, 0], torch.zeros(1, 2, 10, dtype=torch.float64))


def test_untied_without_a_stream_is_refused():
    with pytest.raises(ValueError, match="positions='untied'"):
        UntiedPositions(12, 2, 6)(grid_geometry(3, 3, 0, torch.empty(0)), torch.empty(0))


def test_reference_agrees_with_itself_on_one_pair():
    geometry = grid_geometry(3, 4, 1, torch.empty(0))
    log = spatial_log_weights(geometry, torch.tensor([[2.0]]), torch.float64)
    assert log[0, 0, 1, 12].item() == pytest.approx(-(2**2 + 3**2) / 4)
    assert log[0, 0, 0, 5].item() == 0
